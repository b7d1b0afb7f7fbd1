// Which rows of a batch go to which expert shard, and how their sums come back. No gRPC, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace banyan::trunk {

// Marks a place of a row whose expert another shard owns; kNoExpert of the Forward frame.
inline constexpr uint16_t kOtherShard = 0xffff;

struct ExpertRange {
  int32_t first = 0;
  int32_t count = 0;
};

// Split by experts: a shard gets the rows that have at least one of its experts, the ids of others
// replaced by kOtherShard and their weights by 0. Split by width: every shard's range is all
// experts, so each gets all rows as they are. Owned by one thread; reuses its memory.
class DispatchPlan {
 public:
  // What one shard gets. The arrays are those of the batch where nothing had to change, else the
  // plan's own; valid until the next Build.
  struct ShardRows {
    int32_t num_rows = 0;                  // 0: nothing to ask this shard
    bool all_rows = false;                 // then `rows` is empty and row i is row i of the batch
    std::span<const int32_t> rows;         // of the batch, ascending
    std::span<const uint16_t> expert_ids;  // [num_rows, top_k]
    std::span<const float> weights;        // [num_rows, top_k]
  };

  // Ranges in shard order.
  DispatchPlan(const std::vector<ExpertRange>& shards, int32_t num_experts);

  //   expert_ids, weights  [num_rows, top_k], borrowed until the next Build
  void Build(int32_t num_rows, int32_t top_k, const uint16_t* expert_ids, const float* weights);

  int32_t num_shards() const { return static_cast<int32_t>(shards_.size()); }
  const ShardRows& shard(int32_t shard) const { return shards_[static_cast<size_t>(shard)].rows; }

 private:
  struct Shard {
    ExpertRange range;
    bool all_experts = false;
    ShardRows rows;
    std::vector<int32_t> row_ids;
    std::vector<uint16_t> expert_ids;
    std::vector<float> weights;
  };
  void BuildShard(Shard& shard, int32_t num_rows, int32_t top_k, const uint16_t* expert_ids,
                  const float* weights);

  std::vector<Shard> shards_;
};

// Of a shard's rows, or of a batch's: [first, end).
struct RowRange {
  int32_t first = 0;
  int32_t end = 0;
};

// Copies rows of one shard, `row_bytes` each: to [rows.num_rows, row_bytes].
void GatherRows(const DispatchPlan::ShardRows& rows, RowRange range, const std::byte* from,
                size_t row_bytes, std::byte* to);

// Adds partial rows of a shard [rows.num_rows, hidden_size] (any alignment) to out
// [batch rows, hidden_size]; adding shard after shard in order makes the sum a function of the
// partial rows alone.
void AddPartialRowsF32(const DispatchPlan::ShardRows& rows, RowRange range,
                       const std::byte* partial, int32_t hidden_size, float* out);
void AddPartialRowsBF16(const DispatchPlan::ShardRows& rows, RowRange range,
                        const std::byte* partial, int32_t hidden_size, float* out);

}  // namespace banyan::trunk
