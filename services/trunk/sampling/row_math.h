// Passes over one row of logits, written so that the compiler vectorises them for plain x86-64 and
// the bits are the same on every machine (no fused multiply-add, fixed order of sums).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace banyan::trunk {

struct RowSummary {
  float max = 0;
  bool finite = true;  // no NaN and no infinity; `max` means nothing otherwise
};

// An empty row has max -infinity and is finite.
RowSummary SummarizeRow(std::span<const float> row);

// Beyond this no penalty makes an infinity of a logit (sampling_params.h has their ranges).
inline constexpr float kLogitBound = 0x1p100f;

// Whether all of `row` is between -kLogitBound and kLogitBound, hence finite.
bool WithinBound(std::span<const float> row);

// Lowest index that holds `value`; it must be there (CHECK).
int32_t FirstIndexOf(std::span<const float> row, float value);

// exp(x) for x <= 0 within 2 ulp; results below 2^-126 are 0.
float ExpNonPositive(float x);

// out[i] = exp((row[i] - max) * scale), returns the sum. max: the row's largest, scale >= 0.
// out may be empty when only the sum is wanted.
double ExpRow(std::span<const float> row, float max, float scale, std::span<float> out);

struct ScoredId {
  float score = 0;
  int32_t id = 0;
};

// Descending by score, ties by lower id: a total order.
inline bool ScoresHigher(const ScoredId& a, const ScoredId& b) {
  return a.score != b.score ? a.score > b.score : a.id < b.id;
}

// The `count` highest of `row` in that order (fewer if the row is shorter), overwriting `top`,
// which does not grow beyond SelectTopCapacity. Skips whole blocks below the best found so far;
// nothing but the result is sorted. Undefined with a NaN in the row.
inline constexpr size_t kSelectTopBlock = 64;
constexpr size_t SelectTopCapacity(int32_t count) {
  return 2 * static_cast<size_t>(count) + 64 + kSelectTopBlock;
}
void SelectTop(std::span<const float> row, int32_t count, std::vector<ScoredId>* top);

}  // namespace banyan::trunk
