#include "services/trunk/sampling/row_math.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <limits>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {

// Independent accumulators: lets four-wide SSE run without reordering a sum or a maximum.
constexpr size_t kLanes = 16;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Cody-Waite reduction and a degree-6 polynomial (coefficients of Cephes expf).
inline float ExpLane(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kSmallest = -87.3f;       // exp of it is just above 2^-126
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < kSmallest ? kSmallest : x;
  const float shifted = clamped * kLog2E + kRounding;
  const float n = shifted - kRounding;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRounding);
  const float scale = std::bit_cast<float>((exponent + 127) << 23);
  return x < kSmallest ? 0.0f : p * scale;
}

}  // namespace

RowSummary SummarizeRow(std::span<const float> row) {
  float max[kLanes];
  float poison[kLanes];  // 0 while everything is finite: inf * 0 and NaN * 0 are NaN
  std::fill(max, max + kLanes, kLowest);
  std::fill(poison, poison + kLanes, 0.0f);
  const size_t whole = row.size() / kLanes * kLanes;
  const float* const data = row.data();
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      const float x = data[i + j];
      max[j] = x > max[j] ? x : max[j];
      poison[j] += x * 0.0f;
    }
  }
  for (size_t i = whole; i < row.size(); ++i) {
    max[0] = std::max(max[0], data[i]);
    poison[0] += data[i] * 0.0f;
  }
  RowSummary summary;
  summary.max = *std::max_element(max, max + kLanes);
  for (const float p : poison) summary.finite = summary.finite && p == 0.0f;
  return summary;
}

int32_t FirstIndexOf(std::span<const float> row, float value) {
  const auto found = std::find(row.begin(), row.end(), value);
  CHECK(found != row.end());
  return static_cast<int32_t>(found - row.begin());
}

float ExpNonPositive(float x) { return ExpLane(x); }

double ExpRow(std::span<const float> row, float max, float scale, std::span<float> out) {
  CHECK(out.empty() || out.size() == row.size());
  constexpr size_t kBlock = 256;  // summed in f32, blocks in f64
  float scratch[kBlock];
  double total = 0;
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    const size_t count = std::min(kBlock, row.size() - begin);
    const float* const in = row.data() + begin;
    float* const exps = out.empty() ? scratch : out.data() + begin;
    for (size_t i = 0; i < count; ++i) exps[i] = ExpLane((in[i] - max) * scale);
    float lanes[kLanes] = {};
    const size_t whole = count / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes) {
      for (size_t j = 0; j < kLanes; ++j) lanes[j] += exps[i + j];
    }
    for (size_t i = whole; i < count; ++i) lanes[i - whole] += exps[i];
    for (const float lane : lanes) total += static_cast<double>(lane);
  }
  return total;
}

void SelectTop(std::span<const float> row, int32_t count, std::vector<ScoredId>* top) {
  top->clear();
  if (count <= 0) return;
  const size_t keep = std::min(static_cast<size_t>(count), row.size());
  const size_t capacity = 2 * keep + 64;
  // Candidates must beat the worst of the best `keep` seen so far. An equal score further on has
  // the higher id and loses.
  float threshold = kLowest;
  bool full = false;
  const auto shrink = [&] {
    std::nth_element(top->begin(), top->begin() + static_cast<ptrdiff_t>(keep) - 1, top->end(),
                     ScoresHigher);
    top->resize(keep);
    threshold = top->back().score;
    full = true;
  };
  constexpr size_t kBlock = 4 * kLanes;
  const float* const data = row.data();
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, row.size());
    if (full && end - begin == kBlock) {
      float max[kLanes];
      std::copy(data + begin, data + begin + kLanes, max);
      for (size_t i = begin + kLanes; i < end; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) max[j] = data[i + j] > max[j] ? data[i + j] : max[j];
      }
      bool any = false;
      for (const float lane : max) any |= lane > threshold;
      if (!any) continue;
    }
    for (size_t i = begin; i < end; ++i) {
      if (!full || data[i] > threshold) top->push_back({data[i], static_cast<int32_t>(i)});
    }
    if (top->size() >= capacity) shrink();
  }
  if (top->size() > keep) shrink();
  std::sort(top->begin(), top->end(), ScoresHigher);
}

}  // namespace banyan::trunk
