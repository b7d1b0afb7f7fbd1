#include "services/client/connection/cluster_load.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "services/client/connection/load_row.h"

namespace banyan::client {
namespace {

using common::v1::LoadProgress;

LoadRow RowOf(const std::string& name, const LoadWatcher::State& state) {
  if (state.connected) return LoadRowOf(name, state.progress);
  LoadRow row;
  row.name = name;
  row.phase = "starting";
  return row;
}

}  // namespace

ClusterLoad::ClusterLoad(const std::string& trunk_address)
    : trunk_(trunk_address, ServiceKind::kTrunk) {}

void ClusterLoad::Follow(const LoadProgress& trunk) {
  bool same = replicas_.size() == static_cast<size_t>(trunk.replicas_size());
  for (int i = 0; same && i < trunk.replicas_size(); ++i) {
    same = replicas_[static_cast<size_t>(i)].address == trunk.replicas(i).address();
  }
  if (same) return;
  replicas_.clear();
  std::map<int32_t, int> of_shard;
  for (const LoadProgress::Replica& replica : trunk.replicas()) {
    const int number = of_shard[replica.shard()]++;
    Replica& added = replicas_.emplace_back();
    added.name = number == 0 ? fmt::format("expert {}", replica.shard())
                             : fmt::format("expert {}.{}", replica.shard(), number);
    added.address = replica.address();
    added.watcher = std::make_unique<LoadWatcher>(replica.address(), ServiceKind::kExpert);
  }
}

std::vector<LoadRow> ClusterLoad::Rows() {
  const LoadWatcher::State trunk = trunk_.Get();
  if (trunk.connected) Follow(trunk.progress);
  phase_ = trunk.progress.phase();
  detail_ = trunk.progress.detail();
  std::vector<LoadRow> rows = {RowOf("trunk", trunk)};
  for (const Replica& replica : replicas_) {
    rows.push_back(RowOf(replica.name, replica.watcher->Get()));
  }
  return rows;
}

}  // namespace banyan::client
