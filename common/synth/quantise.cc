#include "common/synth/quantise.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>

#include "common/base/check.h"
#include "common/quant/nf4.h"

namespace banyan {
namespace {

constexpr int64_t kNestedBlock = 256;
constexpr float kMaxE4M3 = 448;

// torch.linspace(0.1, 1, n), which steps from both ends towards the middle and rounds once.
std::vector<float> Linspace(int n) {
  const float step = (1.0f - 0.1f) / static_cast<float>(n - 1);
  std::vector<float> out(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {
    const double value = i < n / 2 ? static_cast<double>(0.1f) + static_cast<double>(step) * i
                                   : 1.0 - static_cast<double>(step) * (n - 1 - i);
    out[static_cast<size_t>(i)] = static_cast<float>(value);
  }
  return out;
}

std::array<float, 256> MakeDynamicMap() {
  constexpr double kScales[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
  std::array<float, 256> map{};  // one stays 0
  size_t at = 0;
  for (int i = 0; i < 7; ++i) {
    const std::vector<float> edges = Linspace((1 << i) + 1);
    for (size_t j = 0; j + 1 < edges.size(); ++j) {
      const float value = (edges[j] + edges[j + 1]) / 2.0f * static_cast<float>(kScales[i]);
      map[at++] = value;
      map[at++] = -value;
    }
  }
  map[at++] = 1;
  CHECK(at + 1 == map.size());
  std::sort(map.begin(), map.end());
  return map;
}

uint8_t NearestInMap(float x) {
  const std::span<const float, 256> map = DynamicMap();
  const auto above = std::lower_bound(map.begin(), map.end(), x);
  if (above == map.begin()) return 0;
  if (above == map.end()) return 255;
  const auto i = static_cast<size_t>(above - map.begin());
  return static_cast<uint8_t>(x - map[i - 1] <= map[i] - x ? i - 1 : i);
}

float AbsMax(std::span<const float> w) {
  float out = 0;
  for (const float x : w) out = std::max(out, std::abs(x));
  return out;
}

}  // namespace

void QuantiseNF4(std::span<const float> w, std::byte* codes, float* absmax) {
  float part[kNF4BlockSize] = {};
  for (size_t first = 0; first < w.size(); first += kNF4BlockSize) {
    const size_t n = std::min<size_t>(kNF4BlockSize, w.size() - first);
    const float* block = w.data() + first;
    if (n < kNF4BlockSize) {
      std::copy_n(block, n, part);
      block = part;
    }
    const NF4Block encoded = EncodeNF4Block(block);
    *absmax++ = encoded.absmax;
    for (size_t i = 0; i < (n + 1) / 2; ++i) {
      *codes++ = static_cast<std::byte>(encoded.codes[2 * i] << 4 | encoded.codes[2 * i + 1]);
    }
  }
}

std::span<const float, 256> DynamicMap() {
  static const std::array<float, 256> map = MakeDynamicMap();
  return map;
}

NestedScales NestScales(std::span<const float> absmax) {
  NestedScales out;
  const double sum = std::accumulate(absmax.begin(), absmax.end(), 0.0);
  out.offset = static_cast<float>(sum / static_cast<double>(std::max<size_t>(absmax.size(), 1)));
  std::vector<float> x(absmax.begin(), absmax.end());
  for (float& value : x) value -= out.offset;
  for (size_t first = 0; first < x.size(); first += kNestedBlock) {
    const auto block =
        std::span(x).subspan(first, std::min<size_t>(kNestedBlock, x.size() - first));
    const float scale = AbsMax(block);
    out.nested_absmax.push_back(scale);
    for (const float value : block)
      out.codes.push_back(NearestInMap(scale > 0 ? value / scale : 0));
  }
  return out;
}

void QuantiseInt8Rows(std::span<const float> w, int64_t num_cols, std::byte* codes, float* scb) {
  const auto cols = static_cast<size_t>(num_cols);
  for (size_t first = 0; first < w.size(); first += cols) {
    const std::span<const float> row = w.subspan(first, cols);
    const float absmax = AbsMax(row);
    *scb++ = absmax;
    const float scale = absmax > 0 ? 127.0f / absmax : 0;
    for (const float x : row) {
      const float code = std::clamp(std::nearbyint(x * scale), -127.0f, 127.0f);
      *codes++ = static_cast<std::byte>(static_cast<int8_t>(code));
    }
  }
}

uint8_t ToE4M3(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::abs(value);
  if (magnitude >= kMaxE4M3) return sign | 0x7e;
  constexpr float kSmallestNormal = 0x1p-6f;
  if (magnitude < kSmallestNormal) {
    // Steps of 2^-9; 8 of them are the smallest normal number, whose code follows.
    return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  }
  // Round the mantissa to 3 bits; a carry goes into the exponent, as it should.
  uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  bits += 0x7ffffu + ((bits >> 20) & 1u);
  const auto code = static_cast<uint32_t>((bits >> 20) - ((127u - 7u) << 3));
  return sign | static_cast<uint8_t>(std::min(code, 0x7eu));
}

void QuantiseFP8Rows(std::span<const float> w, int64_t num_cols, std::byte* codes, BF16* scales) {
  const auto cols = static_cast<size_t>(num_cols);
  const size_t rows = w.size() / cols;
  CHECK(rows <= static_cast<size_t>(kFP8Block));
  for (size_t col = 0; col < cols; col += kFP8Block) {
    const size_t n = std::min<size_t>(kFP8Block, cols - col);
    float absmax = 0;
    for (size_t r = 0; r < rows; ++r)
      absmax = std::max(absmax, AbsMax(w.subspan(r * cols + col, n)));
    BF16 scale = ToBF16(absmax / kMaxE4M3);
    if (!(ToFloat(scale) > 0) || !std::isfinite(1 / ToFloat(scale))) scale = ToBF16(1);
    *scales++ = scale;
    const float inverse = 1 / ToFloat(scale);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = col; c < col + n; ++c) {
        codes[r * cols + c] = static_cast<std::byte>(ToE4M3(w[r * cols + c] * inverse));
      }
    }
  }
}

}  // namespace banyan
