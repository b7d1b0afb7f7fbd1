#include "tests/fakes/expert_host.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include <utility>

#include "common/base/check.h"
#include "common/rpc/channel_settings.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server_threads.h"

namespace banyan {

using Experts = expert::v1::Experts;

class ExpertHost::Service final : public Experts::WithRawMethod_Forward<Experts::Service> {
 public:
  Service(expert::v1::DescribeResponse description, MemoryInbox* inbox,
          expert::PoolLender::OpenFileFn open_pool)
      : description_(std::move(description)), lender_(inbox) {
    lender_.SetPool(std::move(open_pool));
  }

  grpc::Status Describe(grpc::ServerContext*, const expert::v1::DescribeRequest*,
                        expert::v1::DescribeResponse* response) override {
    *response = description_;
    return grpc::Status::OK;
  }
  grpc::Status LendPool(grpc::ServerContext*, const expert::v1::LendPoolRequest* request,
                        expert::v1::LendPoolResponse* response) override {
    const absl::StatusOr<uint64_t> file_bytes = lender_.Lend(request->socket_name());
    if (file_bytes.ok()) response->set_file_bytes(*file_bytes);
    return ToGrpc(file_bytes.status());
  }

 private:
  const expert::v1::DescribeResponse description_;
  expert::PoolLender lender_;
};

ExpertHost::ExpertHost(const Options& options, expert::v1::DescribeResponse description,
                       expert::ExpertExecutor* executor) {
  grpc::EnableDefaultHealthCheckService(false);
  if (options.health_and_reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  expert::ForwardStreamServer::Options forward = options.forward;
  if (const auto inbox = MemoryInboxPath(options.listen); inbox.has_value()) {
    inbox_ = *MemoryInbox::Create(*inbox);
    forward.inbox = inbox_.get();
  }
  service_ = std::make_unique<Service>(std::move(description), inbox_.get(), options.open_pool);
  grpc::ServerBuilder builder;
  ApplyExpertServerSettings(builder);
  LimitHandlerThreads(builder);
  if (options.health_and_reflection) builder.RegisterService(&health_);
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service_.get());
  forward_.emplace(forward, builder, metrics_);
  server_ = builder.BuildAndStart();
  CHECK(server_ != nullptr);
  forward_->Start(
      [this](grpc::ServerContext* context, expert::ForwardStreamServer::RawStream* stream,
             grpc::CompletionQueue* queue, grpc::ServerCompletionQueue* notification,
             void* tag) { service_->RequestForward(context, stream, queue, notification, tag); });
  forward_->SetExecutor(executor);
  address_ = options.listen.compare(0, 5, "unix:") == 0
                 ? options.listen
                 : options.listen.substr(0, options.listen.rfind(':') + 1) + std::to_string(port);
}

ExpertHost::~ExpertHost() { Shutdown(); }

void ExpertHost::Shutdown() {
  if (server_ == nullptr) return;
  health_.Stop();
  server_->Shutdown(std::chrono::system_clock::now());
  forward_->Stop();
  server_.reset();
}

expert::v1::DescribeResponse MakeDescription(const ShardGeometry& geometry, expert::v1::Split split,
                                             int32_t shard_index, int32_t num_shards,
                                             const std::string& fingerprint) {
  expert::v1::DescribeResponse host;
  host.set_protocol_version(kForwardProtocolVersion);
  host.set_server_version("test");
  host.set_model_fingerprint(fingerprint);
  host.set_num_layers(static_cast<uint32_t>(geometry.num_layers));
  for (int32_t layer = 0; layer < geometry.num_layers; ++layer) {
    host.add_moe_layers(static_cast<uint32_t>(layer));
  }
  host.set_num_experts(static_cast<uint32_t>(geometry.num_experts));
  host.set_hidden_size(static_cast<uint32_t>(geometry.hidden_size));
  host.set_moe_intermediate_size(static_cast<uint32_t>(geometry.moe_intermediate_size));
  host.set_max_top_k(static_cast<uint32_t>(geometry.max_top_k));
  host.set_split(split);
  host.set_shard_index(static_cast<uint32_t>(shard_index));
  host.set_num_shards(static_cast<uint32_t>(num_shards));
  host.set_first_expert(static_cast<uint32_t>(geometry.first_expert));
  host.set_num_shard_experts(static_cast<uint32_t>(geometry.num_shard_experts));
  host.set_first_width(static_cast<uint32_t>(geometry.first_width));
  host.set_num_shard_width(static_cast<uint32_t>(geometry.num_shard_width));
  host.set_pool_format("bf16");
  host.set_kernel_tier("scalar");
  host.set_max_rows(static_cast<uint32_t>(geometry.max_rows));
  host.set_max_message_bytes(kMaxMessageBytes);
  return host;
}

}  // namespace banyan
