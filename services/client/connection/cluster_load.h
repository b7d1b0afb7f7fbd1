// The loads of a trunk and of every expert that it names, followed together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "proto/common/v1/load.pb.h"
#include "services/client/connection/load_watcher.h"
#include "services/client/terminal/progress_view.h"

namespace banyan::client {

// Owned by one thread. The trunk may start later; its experts are watched from the moment on when
// it says where they are.
class ClusterLoad {
 public:
  explicit ClusterLoad(const std::string& trunk_address);

  // What is known now: the trunk, then its replicas in order of shards.
  std::vector<LoadRow> Rows();

  // As of the latest Rows().
  bool ready() const { return phase_ == common::v1::LoadProgress::READY; }
  bool failed() const { return phase_ == common::v1::LoadProgress::FAILED; }
  const std::string& detail() const { return detail_; }

 private:
  struct Replica {
    std::string name;
    std::string address;
    std::unique_ptr<LoadWatcher> watcher;
  };
  void Follow(const common::v1::LoadProgress& trunk);

  LoadWatcher trunk_;
  std::vector<Replica> replicas_;
  common::v1::LoadProgress::Phase phase_ = common::v1::LoadProgress::PHASE_UNSPECIFIED;
  std::string detail_;  // of the trunk
};

}  // namespace banyan::client
