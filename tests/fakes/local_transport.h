// The routed experts in this process, in plain f32: what shards behind gRPC compute, without them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "services/trunk/experts/expert_transport.h"

namespace banyan::test {

// Weights are widened to f32 when a layer is first used. A row's result depends on that row alone:
// experts in the order of its ids, one accumulator per value. Checks what it is given (CHECK):
// distinct ids in range but for kOtherShard, as many batches as the interface allows, arrays that
// stay as they were sent.
class LocalTransport : public trunk::ExpertTransport {
 public:
  // `checkpoint` outlives the transport.
  LocalTransport(const Checkpoint& checkpoint, const ModelConfig& config);
  ~LocalTransport() override;

  // Every third time there is none, as where all of it is on its way. What it held is overwritten.
  void LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks, size_t block_bytes) override;
  std::byte* TakeRowsMemory() override;
  absl::Status Dispatch(const Batch& batch) override;
  absl::Status Combine(float* out) override;
  void Abandon() override;
  absl::Status Ready() const override { return absl::OkStatus(); }
  absl::Status WaitReady(absl::Time) override { return absl::OkStatus(); }

  // The next Combine fails with this status, or the one after `later` others, and only that one.
  void FailOnce(absl::Status status, int later = 0) {
    failure_ = std::move(status);
    combines_before_failure_ = later;
  }
  // The next Dispatch likewise.
  void FailDispatchOnce(absl::Status status, int later = 0) {
    dispatch_failure_ = std::move(status);
    dispatches_before_failure_ = later;
  }
  // What was called since the last time: "d3" and "c3", Dispatch and Combine of layer 3, and "a".
  std::vector<std::string> TakeCalls() { return std::exchange(calls_, {}); }
  int num_under_way() const { return static_cast<int>(under_way_.size()); }

 private:
  // Transposed, so that the inner loops run over outputs.
  struct Expert {
    std::vector<float> gate_proj;  // [hidden_size, width]
    std::vector<float> up_proj;    // [hidden_size, width]
    std::vector<float> down_proj;  // [width, hidden_size]
  };

  const Expert& Load(int32_t layer, int32_t expert);
  // A row of a batch as f32.
  const float* Widen(const Batch& batch, int32_t row);
  // Of what the batch borrows.
  static uint64_t ChecksumOf(const Batch& batch, size_t hidden_size);
  void AddExpert(const Expert& expert, const float* x, float weight, float* out);

  const Checkpoint& checkpoint_;
  const ModelConfig config_;
  std::vector<std::vector<std::unique_ptr<Expert>>> layers_;  // [layer][expert], null: not loaded
  std::vector<float> row_, gate_, up_, down_;                 // of one row
  std::vector<std::shared_ptr<std::byte>> lent_;
  size_t lent_bytes_ = 0;
  size_t num_taken_ = 0;
  struct Sent {
    Batch batch;
    uint64_t checksum = 0;
  };
  std::deque<Sent> under_way_;  // oldest first
  absl::Status failure_, dispatch_failure_;
  int combines_before_failure_ = 0, dispatches_before_failure_ = 0;
  std::vector<std::string> calls_;
};

}  // namespace banyan::test
