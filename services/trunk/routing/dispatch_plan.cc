#include "services/trunk/routing/dispatch_plan.h"

#include <bit>
#include <cstring>
#include <utility>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {

int32_t BatchRow(const DispatchPlan::ShardRows& rows, int32_t i) {
  return rows.all_rows ? i : rows.rows[static_cast<size_t>(i)];
}

// Loads go through memcpy: replies lie at any address. The compiler makes vectors of both loops.
void AddF32(const std::byte* from, int32_t size, float* __restrict out) {
  for (int32_t i = 0; i < size; ++i) {
    float value;
    std::memcpy(&value, from + static_cast<size_t>(i) * sizeof(value), sizeof(value));
    out[i] += value;
  }
}

void AddBF16(const std::byte* from, int32_t size, float* __restrict out) {
  for (int32_t i = 0; i < size; ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + static_cast<size_t>(i) * sizeof(bits), sizeof(bits));
    out[i] += std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
}

}  // namespace

DispatchPlan::DispatchPlan(const std::vector<ExpertRange>& shards, int32_t num_experts) {
  CHECK(!shards.empty());
  for (const ExpertRange& range : shards) {
    CHECK(range.first >= 0 && range.count > 0 && range.first + range.count <= num_experts);
    Shard shard;
    shard.range = range;
    shard.all_experts = range.count == num_experts;
    shards_.push_back(std::move(shard));
  }
}

void DispatchPlan::Build(int32_t num_rows, int32_t top_k, const uint16_t* expert_ids,
                         const float* weights) {
  CHECK(num_rows > 0 && top_k > 0);
  for (Shard& shard : shards_) BuildShard(shard, num_rows, top_k, expert_ids, weights);
}

void DispatchPlan::BuildShard(Shard& shard, int32_t num_rows, int32_t top_k,
                              const uint16_t* expert_ids, const float* weights) {
  const auto num_places = static_cast<size_t>(num_rows) * static_cast<size_t>(top_k);
  if (shard.all_experts) {
    shard.rows = {.num_rows = num_rows,
                  .all_rows = true,
                  .rows = {},
                  .expert_ids = {expert_ids, num_places},
                  .weights = {weights, num_places}};
    return;
  }
  shard.row_ids.clear();
  shard.expert_ids.clear();
  shard.weights.clear();
  for (int32_t row = 0; row < num_rows; ++row) {
    const size_t start = shard.expert_ids.size();
    bool any = false;
    for (int32_t k = 0; k < top_k; ++k) {
      const size_t place = static_cast<size_t>(row) * static_cast<size_t>(top_k) + k;
      const int32_t expert = expert_ids[place];
      const bool here =
          expert >= shard.range.first && expert < shard.range.first + shard.range.count;
      any |= here;
      shard.expert_ids.push_back(here ? expert_ids[place] : kOtherShard);
      shard.weights.push_back(here ? weights[place] : 0.0f);
    }
    if (any) {
      shard.row_ids.push_back(row);
    } else {
      shard.expert_ids.resize(start);
      shard.weights.resize(start);
    }
  }
  const auto taken = static_cast<int32_t>(shard.row_ids.size());
  shard.rows = {.num_rows = taken,
                .all_rows = taken == num_rows,
                .rows = {},
                .expert_ids = shard.expert_ids,
                .weights = shard.weights};
  if (!shard.rows.all_rows) shard.rows.rows = shard.row_ids;
}

void GatherRows(const DispatchPlan::ShardRows& rows, RowRange range, const std::byte* from,
                size_t row_bytes, std::byte* to) {
  if (rows.all_rows) {
    const size_t at = static_cast<size_t>(range.first) * row_bytes;
    std::memcpy(to + at, from + at, static_cast<size_t>(range.end - range.first) * row_bytes);
    return;
  }
  for (int32_t i = range.first; i < range.end; ++i) {
    std::memcpy(to + static_cast<size_t>(i) * row_bytes,
                from + static_cast<size_t>(BatchRow(rows, i)) * row_bytes, row_bytes);
  }
}

void AddPartialRowsF32(const DispatchPlan::ShardRows& rows, RowRange range,
                       const std::byte* partial, int32_t hidden_size, float* out) {
  const auto width = static_cast<size_t>(hidden_size);
  for (int32_t i = range.first; i < range.end; ++i) {
    AddF32(partial + static_cast<size_t>(i) * width * sizeof(float), hidden_size,
           out + static_cast<size_t>(BatchRow(rows, i)) * width);
  }
}

void AddPartialRowsBF16(const DispatchPlan::ShardRows& rows, RowRange range,
                        const std::byte* partial, int32_t hidden_size, float* out) {
  const auto width = static_cast<size_t>(hidden_size);
  for (int32_t i = range.first; i < range.end; ++i) {
    AddBF16(partial + static_cast<size_t>(i) * width * sizeof(uint16_t), hidden_size,
            out + static_cast<size_t>(BatchRow(rows, i)) * width);
  }
}

}  // namespace banyan::trunk
