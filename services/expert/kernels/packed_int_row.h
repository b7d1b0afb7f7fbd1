// A prepared row of the integer pool formats: k inputs in groups of 32, each group with its own
// scale, x = scale * q.
//
//   values       as the tier wants them, chunk after chunk of 64 inputs:
//                planes: s8, kFast q; kExact two planes h and l with q = 256 h + l
//                words: s16 q
//   scales       f32, one a group
//   corrections  i32, one a group: -offset * (sum of its q), offset being what the format stores
//                beyond the weights' q (128 or 8); the start of a group's integer sum
//
// kFast: |q| <= 127, scale = amax / 127. kExact: |q| <= 32639 = 127 * 256 + 127, so that both h and
// l fit 8 bits. q = x * (limit / amax) rounded to nearest even; the division rounds first.
//
// A group whose amax is below 2^-100 counts as zero. A group that holds a NaN or an infinity has q
// 0 and a scale of NaN: every output of that row becomes NaN, and nothing else does.
//
// Bounds of a group's sum in i32: kExact with int8, 32 * 255 * 127 * 256 = 2.7e8 for the plane h,
// 32 * 127 * 32639 = 1.4e8 for the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/quant/pool_format.h"
#include "services/expert/kernels/packed_ffn.h"

namespace banyan::expert {

inline constexpr int64_t kIntGroup = 32;
inline constexpr int64_t kIntChunkGroups = kChunkInputs / kIntGroup;

// The largest |q|.
constexpr float IntLimit(Precision precision) {
  return precision == Precision::kExact ? 32639.0f : 127.0f;
}

// The smallest amax that does not count as zero: its reciprocal times the limit is finite.
inline constexpr float kMinAmax = 0x1p-100f;

// Offsets in bytes.
struct IntRowLayout {
  int64_t plane = 0;  // of the second plane, from the first
  int64_t scales = 0;
  int64_t corrections = 0;
  int64_t bytes = 0;
};

// value_bytes: of one input, both planes together.
constexpr IntRowLayout MakeIntRowLayout(int64_t k, int64_t value_bytes) {
  const int64_t chunks = NumChunks(k);
  const int64_t per_group = (chunks * kIntChunkGroups * 4 + 63) / 64 * 64;
  IntRowLayout out;
  out.plane = chunks * kChunkInputs;
  out.scales = chunks * kChunkInputs * value_bytes;
  out.corrections = out.scales + per_group;
  out.bytes = out.corrections + per_group;
  return out;
}

}  // namespace banyan::expert
