// A trunk and its expert shards as real processes on this machine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/inference/v1/inference.grpc.pb.h"
#include "tests/fakes/sanitized.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/process.h"

namespace banyan::test {

// How long a process may take to listen and a request to be answered.
inline const absl::Duration kPatience = absl::Seconds(kSanitized ? 480 : 60);

struct ClusterOptions {
  std::string model_dir;
  int num_shards = 1;
  std::string split = "width";
  bool unix_sockets = false;  // else TCP on loopback
  std::vector<std::string> trunk_args;
  std::vector<std::string> expert_args;
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options);

  // Starts every process; returns once all listen. The trunk may still be loading.
  absl::Status Start();
  absl::Status StartExpert(int shard);  // first start, or again at the same address
  absl::Status StartTrunk();

  // OK once the trunk's health is SERVING.
  absl::Status AwaitServing(absl::Duration timeout);

  Process* trunk() { return trunk_.get(); }
  Process* expert(int shard) { return experts_[static_cast<size_t>(shard)].get(); }
  const std::string& trunk_address() const { return trunk_address_; }
  const std::string& expert_address(int shard) const {
    return expert_addresses_[static_cast<size_t>(shard)];
  }
  const std::string& temp_dir() const { return temp_.path(); }

  std::unique_ptr<inference::v1::Inference::Stub> NewStub() const;

 private:
  ClusterOptions options_;
  TempDir temp_;
  std::vector<std::string> expert_addresses_;  // "" until the first start
  std::vector<std::unique_ptr<Process>> experts_;
  std::string trunk_address_;
  std::unique_ptr<Process> trunk_;
};

// One finished Generate call.
struct Answer {
  std::string text;
  std::vector<int32_t> ids;
  int num_messages = 0;
  inference::v1::Started started;
  inference::v1::Finished finished;
};

absl::StatusOr<Answer> Generate(inference::v1::Inference::Stub& stub,
                                const inference::v1::GenerateRequest& request,
                                absl::Duration timeout = kPatience);

}  // namespace banyan::test
