// The portable tier of the integer formats: plain C++, fused by std::fma where the others fuse.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/quant/int4_block.h"
#include "common/quant/int8_block.h"
#include "common/quant/round_int.h"
#include "services/expert/kernels/packed_int_row.h"
#include "services/expert/kernels/packed_kernel_table.h"

namespace banyan::expert {
namespace {
namespace scalar {

struct V {
  static constexpr int kLanes = 1;
  using Reg = float;
  static Reg Zero() { return 0.0f; }
  static Reg Set1(float value) { return value; }
  static Reg LoadX(const float* p) { return *p; }
  static void Store(Reg a, float* p) { *p = a; }
  static Reg Add(Reg a, Reg b) { return a + b; }
  static Reg Sub(Reg a, Reg b) { return a - b; }
  static Reg Mul(Reg a, Reg b) { return a * b; }
  static Reg Div(Reg a, Reg b) { return a / b; }
  static Reg Min(Reg a, Reg b) { return a < b ? a : b; }
  static Reg Max(Reg a, Reg b) { return a > b ? a : b; }
  static Reg MulAdd(Reg a, Reg b, Reg c) { return std::fma(a, b, c); }
  static Reg RoundInt(Reg a) { return std::nearbyint(a); }
  static Reg Pow2(Reg n) {
    // A NaN stays out of the conversion; it is in the polynomial already.
    const int32_t exponent = n == n ? static_cast<int32_t>(n) : 0;
    return std::bit_cast<float>((exponent + 127) << 23);
  }
};

#include "services/expert/kernels/packed_int-inl.h"

struct T : WithoutTiles<T> {
  using V = scalar::V;
  static constexpr const char* kTier = "scalar";
  template <class F, Precision E>
  static constexpr int64_t kValueBytes = sizeof(int16_t);
  static constexpr int32_t MaxRows(Precision) { return 4; }
  static constexpr int Panels(Precision, int32_t) { return 2; }

  template <class F, Precision E>
  static void PrepareGroup(const float* x, std::byte* row, const IntRowLayout& layout,
                           int64_t group) {
    int32_t max_bits = 0;  // magnitudes of floats are ordered as their bits
    for (int64_t i = 0; i < kIntGroup; ++i) {
      max_bits = std::max(max_bits, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
    }
    const float amax = std::bit_cast<float>(max_bits);
    int16_t q[kIntGroup] = {};
    int32_t sum = 0;
    float scale = 0;
    if (max_bits >= 0x7f800000) {
      scale = std::numeric_limits<float>::quiet_NaN();
    } else if (amax >= kMinAmax) {
      scale = amax / IntLimit(E);
      const float inverse = IntLimit(E) / amax;
      for (int64_t i = 0; i < kIntGroup; ++i) {
        q[i] = static_cast<int16_t>(RoundToInt(x[i] * inverse));
        sum += q[i];
      }
    }
    const int32_t correction = -F::kOffset * sum;
    std::memcpy(row + group * kIntGroup * 2, q, sizeof(q));
    std::memcpy(row + layout.scales + group * 4, &scale, 4);
    std::memcpy(row + layout.corrections + group * 4, &correction, 4);
  }

  // The stored value of output `o`, input `i` of a chunk.
  template <class F>
  static int32_t Value(const std::byte* chunk, int64_t o, int64_t i) {
    if constexpr (F::kFormat == PoolFormat::kInt8) {
      return static_cast<int32_t>(chunk[i / 4 * 64 + o * 4 + i % 4]);
    } else {
      const auto pair = static_cast<int32_t>(chunk[i / 8 * 64 + o * 4 + i % 4]);
      return i % 8 < 4 ? pair & 0x0f : pair >> 4;
    }
  }

  template <class F, Precision E, int P>
  static void Tile(const TileArgs& a) {
    for (int64_t c = 0; c < a.num_chunks; ++c) {
      for (int p = 0; p < P; ++p) {
        const std::byte* const chunk = a.weights[p] + c * F::kChunkBytes;
        for (int64_t g = 0; g < kIntChunkGroups; ++g) {
          const int64_t group = (a.first_chunk + c) * kIntChunkGroups + g;
          for (int32_t r = 0; r < a.num_rows; ++r) {
            GroupOfRow<F>(a, chunk, g, a.rows[r], group,
                          a.acc + p * a.acc_panel + r * kPanelOutputs);
          }
        }
      }
    }
  }

  template <class F>
  static void GroupOfRow(const TileArgs& a, const std::byte* chunk, int64_t g, const std::byte* row,
                         int64_t group, float* acc) {
    int16_t q[kIntGroup];
    float scale_x;
    int32_t correction;
    std::memcpy(q, row + group * kIntGroup * 2, sizeof(q));
    std::memcpy(&scale_x, row + a.layout->scales + group * 4, 4);
    std::memcpy(&correction, row + a.layout->corrections + group * 4, 4);
    for (int64_t o = 0; o < kPanelOutputs; ++o) {
      int32_t sum = correction;
      for (int64_t i = 0; i < kIntGroup; ++i) {
        sum += Value<F>(chunk, o, g * kIntGroup + i) * q[i];
      }
      F16 scale;
      std::memcpy(&scale, chunk + F::kScales + (g * kPanelOutputs + o) * 2, 2);
      acc[o] = std::fma(static_cast<float>(sum), ToFloat(scale) * scale_x, acc[o]);
    }
  }
};

}  // namespace scalar
}  // namespace

constinit const PackedKernels kPackedIntScalar[kNumPackedInt] = {
    scalar::MakeKernels<scalar::T, scalar::Int8, Precision::kExact>(),
    scalar::MakeKernels<scalar::T, scalar::Int8, Precision::kFast>(),
    scalar::MakeKernels<scalar::T, scalar::Int4, Precision::kExact>(),
    scalar::MakeKernels<scalar::T, scalar::Int4, Precision::kFast>(),
};

}  // namespace banyan::expert
