// Carries rows to the expert shards and brings back their sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/tensor/dtype.h"

namespace banyan::trunk {

// Batches under way at once, at the most: those of the two halves of a step.
inline constexpr int kMaxBatchesUnderWay = 2;

// Owned by the engine's thread, except WaitReady and Ready which any thread may call.
class ExpertTransport {
 public:
  struct Batch {
    int64_t step_id = 0;
    int32_t layer = 0;
    int32_t num_rows = 0;
    int32_t top_k = 0;
    // [num_rows, hidden_size] of activations_dtype, kF32 or kBF16: they travel as they are, and the
    // experts multiply at that precision. The same for every batch of a trunk.
    const void* activations = nullptr;
    DType activations_dtype = DType::kF32;
    // [num_rows, top_k], distinct within a row but for kOtherShard, which no shard is asked for.
    const uint16_t* expert_ids = nullptr;
    const float* weights = nullptr;  // [num_rows, top_k]
    // Requests that join with this step (ParseTrace), the same in all its batches. Each shard is
    // told once a step, with its first call.
    std::string_view trace = {};
  };
  virtual ~ExpertTransport() = default;

  // Memory from which rows are sent as they lie, blocks of `block_bytes`; once, before the first
  // batch. The transport may hold them longer than it lives.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): those that override it keep the blocks.
  virtual void LendRowsMemory(std::vector<std::shared_ptr<std::byte>> /*blocks*/,
                              size_t /*block_bytes*/) {}
  // Of it, where the activations of the next batch may be put, which then are not copied. Null
  // where there is none or all of it is still on its way to a host; activations may lie anywhere.
  virtual std::byte* TakeRowsMemory() { return nullptr; }

  // Sends the rows to the shards that own their experts and returns; the arrays stay borrowed until
  // its Combine has returned, memory of TakeRowsMemory until it returns that again. A second batch
  // may be sent before the first is combined: the shards get it behind that one. After an error
  // this batch is not under way.
  virtual absl::Status Dispatch(const Batch& batch) = 0;

  // Waits for all shards' answers to the oldest batch under way. out [num_rows, hidden_size] is
  // overwritten with the sum of the shards' partial rows, added in shard order. The batch is then
  // over. kUnavailable names the shard and its addresses, whichever batch that failed.
  virtual absl::Status Combine(float* out) = 0;

  // Ends all batches under way; answers that still come are dropped.
  virtual void Abandon() = 0;

  // Time spent in Combine since the start, waiting for shards; for the split of the step time. Zero
  // where it is not measured.
  virtual absl::Duration CombineTime() const { return absl::ZeroDuration(); }

  // OK when every shard has a usable replica; else kUnavailable saying for which one it waits.
  virtual absl::Status Ready() const = 0;
  virtual absl::Status WaitReady(absl::Time deadline) = 0;
};

}  // namespace banyan::trunk
