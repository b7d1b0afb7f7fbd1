#include "common/quant/int4_block.h"

#include <bit>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "common/quant/round_int.h"

namespace banyan {
namespace {

constexpr int kSize = static_cast<int>(kInt4GroupSize);
// The quantised weights, q - 8, and the squared error, summed in eight lanes. Separate loops over
// arrays: compilers turn each into vector instructions.
inline __attribute__((always_inline)) float Quantize(const float* w, float step, int32_t* values) {
  float squares[kSize];
  for (int i = 0; i < kSize; ++i) {
    int32_t q = RoundToInt(w[i] / step);
    q = q < -8 ? -8 : q;
    q = q > 7 ? 7 : q;
    values[i] = q;
  }
  for (int i = 0; i < kSize; ++i) {
    const float error = w[i] - step * static_cast<float>(values[i]);
    squares[i] = error * error;
  }
  float lanes[8];
  for (int l = 0; l < 8; ++l) {
    lanes[l] = ((squares[l] + squares[l + 8]) + squares[l + 16]) + squares[l + 24];
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

inline __attribute__((always_inline)) Int4Group Encode(const float* w) {
  // Magnitudes of floats are ordered as their bits.
  int32_t max_positive = 0;
  int32_t max_any = 0;
  for (int i = 0; i < kSize; ++i) {
    const int32_t bits = std::bit_cast<int32_t>(w[i]);
    const int32_t magnitude = bits & 0x7fffffff;
    max_positive = bits > max_positive ? bits : max_positive;
    max_any = magnitude > max_any ? magnitude : max_any;
  }
  const float amax = std::bit_cast<float>(max_any);
  const float largest = max_positive == max_any ? amax : -amax;

  Int4Group out;
  out.scale = F16{0};
  int32_t best[kSize] = {};
  float least = std::numeric_limits<float>::infinity();
  for (const float divisor : {-8.0f, -8.5f, -7.5f}) {
    const F16 scale = ToF16(largest / divisor);
    if (ToFloat(scale) == 0.0f) continue;
    int32_t values[kSize];
    const float error = Quantize(w, ToFloat(scale), values);
    if (error < least) {
      least = error;
      out.scale = scale;
      std::memcpy(best, values, sizeof(best));
    }
  }
  for (int i = 0; i < kSize; ++i) out.values[i] = static_cast<uint8_t>(best[i] + kInt4Offset);
  return out;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) Int4Group EncodeAvx2(const float* w) { return Encode(w); }
#endif

}  // namespace

Int4Group EncodeInt4GroupPortably(const float* w) { return Encode(w); }

Int4Group EncodeInt4Group(const float* w) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) return EncodeAvx2(w);
#endif
  return Encode(w);
}

}  // namespace banyan
