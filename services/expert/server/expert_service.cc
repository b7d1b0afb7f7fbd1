#include "services/expert/server/expert_service.h"

#include <utility>

#include "common/base/check.h"
#include "common/base/version.h"
#include "common/rpc/channel_settings.h"
#include "common/rpc/grpc_status.h"

namespace banyan::expert {
namespace {

constexpr uint32_t kProtocolVersion = 1;  // of the Forward frames

v1::DescribeResponse DescriptionOf(const PoolDescription& pool, const std::string& kernel_tier) {
  const ShardGeometry& geometry = pool.geometry;
  const auto u32 = [](int32_t value) { return static_cast<uint32_t>(value); };
  v1::DescribeResponse out;
  out.set_protocol_version(kProtocolVersion);
  out.set_server_version(std::string(Version()));
  out.set_model_fingerprint(pool.fingerprint);
  out.set_num_layers(u32(geometry.num_layers));
  for (const int32_t layer : pool.moe_layers) out.add_moe_layers(u32(layer));
  out.set_num_experts(u32(geometry.num_experts));
  out.set_hidden_size(u32(geometry.hidden_size));
  out.set_moe_intermediate_size(u32(geometry.moe_intermediate_size));
  out.set_max_top_k(u32(geometry.max_top_k));
  out.set_split(pool.shard.split == ShardSplit::kWidth ? v1::WIDTH : v1::EXPERTS);
  out.set_shard_index(u32(pool.shard.index));
  out.set_num_shards(u32(pool.shard.num_shards));
  out.set_first_expert(u32(geometry.first_expert));
  out.set_num_shard_experts(u32(geometry.num_shard_experts));
  out.set_first_width(u32(geometry.first_width));
  out.set_num_shard_width(u32(geometry.num_shard_width));
  out.set_pool_format(pool.format);
  out.set_kernel_tier(kernel_tier);
  out.set_pool_bytes(pool.pool_bytes);
  out.set_max_rows(u32(geometry.max_rows));
  out.set_max_message_bytes(kMaxMessageBytes);
  return out;
}

}  // namespace

ExpertService::ExpertService(LoadWatchers* watchers, LendFn lend, std::function<void()> drain)
    : watchers_(watchers), lend_(std::move(lend)), drain_(std::move(drain)) {}

void ExpertService::SetPool(const PoolDescription& pool, const std::string& kernel_tier) {
  CHECK(!described_);
  description_ = DescriptionOf(pool, kernel_tier);
  described_.store(true, std::memory_order_release);
}

grpc::Status ExpertService::Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                                     v1::DescribeResponse* response) {
  if (!described_.load(std::memory_order_acquire)) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE,
                        "this host is reading the checkpoint's headers; WatchLoad tells how far it "
                        "is");
  }
  *response = description_;
  return grpc::Status::OK;
}

grpc::Status ExpertService::WatchLoad(grpc::ServerContext* context, const v1::WatchLoadRequest*,
                                      grpc::ServerWriter<common::v1::LoadProgress>* writer) {
  return watchers_->Serve(context, writer);
}

grpc::Status ExpertService::LendPool(grpc::ServerContext*, const v1::LendPoolRequest* request,
                                     v1::LendPoolResponse* response) {
  const absl::StatusOr<uint64_t> file_bytes = lend_(request->socket_name());
  if (file_bytes.ok()) response->set_file_bytes(*file_bytes);
  return ToGrpc(file_bytes.status());
}

grpc::Status ExpertService::Drain(grpc::ServerContext*, const v1::DrainRequest*,
                                  v1::DrainResponse*) {
  drain_();
  return grpc::Status::OK;
}

}  // namespace banyan::expert
