#include "tests/integration/cluster.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/grpc_status.h"
#include "proto/health/v1/health.grpc.pb.h"

namespace banyan::test {
namespace {

std::string Join(const std::vector<std::string>& parts) {
  return fmt::format("{}", fmt::join(parts, ","));
}

}  // namespace

Cluster::Cluster(ClusterOptions options)
    : options_(std::move(options)),
      expert_addresses_(static_cast<size_t>(options_.num_shards)),
      experts_(static_cast<size_t>(options_.num_shards)) {}

absl::Status Cluster::Start() {
  for (int i = 0; i < options_.num_shards; ++i) RETURN_IF_ERROR(StartExpert(i));
  return StartTrunk();
}

absl::Status Cluster::StartExpert(int shard) {
  const auto i = static_cast<size_t>(shard);
  std::string& address = expert_addresses_[i];
  if (address.empty()) {
    address = options_.unix_sockets ? fmt::format("unix:{}/expert{}.sock", temp_.path(), shard)
                                    : "127.0.0.1:0";
  }
  std::vector<std::string> args = {BinaryPath("banyan-expert"),
                                   "--model=" + options_.model_dir,
                                   "--listen=" + address,
                                   "--metrics_listen=",
                                   fmt::format("--shard={}/{}", shard, options_.num_shards),
                                   "--split=" + options_.split,
                                   "--threads=1"};
  args.insert(args.end(), options_.expert_args.begin(), options_.expert_args.end());
  experts_[i].reset();
  experts_[i] = std::make_unique<Process>(args);
  ASSIGN_OR_RETURN(address, experts_[i]->ListeningAddress(kPatience));
  return absl::OkStatus();
}

absl::Status Cluster::StartTrunk() {
  if (trunk_address_.empty()) {
    trunk_address_ =
        options_.unix_sockets ? fmt::format("unix:{}/trunk.sock", temp_.path()) : "127.0.0.1:0";
  }
  std::vector<std::string> args = {BinaryPath("banyan-trunk"), "--model=" + options_.model_dir,
                                   "--listen=" + trunk_address_,
                                   "--experts=" + Join(expert_addresses_), "--threads=1"};
  const std::vector<std::string>& more = options_.trunk_args;
  const auto unless_given = [&](const std::string& flag, const std::string& value) {
    const bool given = std::any_of(more.begin(), more.end(),
                                   [&](const std::string& arg) { return arg.rfind(flag, 0) == 0; });
    if (!given) args.push_back(flag + "=" + value);
  };
  unless_given("--metrics_listen", "");
  unless_given("--pool_dir", temp_.File("packs"));
  args.insert(args.end(), more.begin(), more.end());
  trunk_.reset();
  trunk_ = std::make_unique<Process>(args);
  ASSIGN_OR_RETURN(trunk_address_, trunk_->ListeningAddress(kPatience));
  return absl::OkStatus();
}

absl::Status Cluster::AwaitServing(absl::Duration timeout) {
  const auto stub = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel(trunk_address_, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(timeout));
  context.set_wait_for_ready(true);
  grpc::health::v1::HealthCheckResponse response;
  const auto reader = stub->Watch(&context, grpc::health::v1::HealthCheckRequest());
  while (reader->Read(&response)) {
    if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
      context.TryCancel();
      reader->Finish();
      return absl::OkStatus();
    }
  }
  return Annotate(FromGrpc(reader->Finish()),
                  fmt::format("trunk did not become healthy; log:\n{}", trunk_->Log()));
}

std::unique_ptr<inference::v1::Inference::Stub> Cluster::NewStub() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return inference::v1::Inference::NewStub(
      grpc::CreateCustomChannel(trunk_address_, grpc::InsecureChannelCredentials(), arguments));
}

absl::StatusOr<Answer> Generate(inference::v1::Inference::Stub& stub,
                                const inference::v1::GenerateRequest& request,
                                absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(timeout));
  const auto reader = stub.Generate(&context, request);
  Answer answer;
  inference::v1::GenerateResponse response;
  while (reader->Read(&response)) {
    ++answer.num_messages;
    if (response.has_started()) answer.started = response.started();
    if (response.has_chunk()) {
      answer.text += response.chunk().text();
      answer.ids.insert(answer.ids.end(), response.chunk().token_ids().begin(),
                        response.chunk().token_ids().end());
    }
    if (response.has_finished()) answer.finished = response.finished();
  }
  RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  return answer;
}

}  // namespace banyan::test
