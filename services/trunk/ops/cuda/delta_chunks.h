// What delta_net_chunks.cu prepares of each chunk of 64 tokens and delta_net_prefill.cu goes
// through: everything that the state has no part in. Matrices in units of f16_tiles.cuh.
#pragma once

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int32_t kChunkTokens = 64;
// Heads narrower than that are filled up with zeros.
inline constexpr int32_t kChunkHeadDim = 128;

// What these matrices are scaled by. No key, query or value of P is larger than 1, nor is one of
// (I + A)^-1, but sums of its products, which are split in turn, may be.
inline constexpr float kKeyScale = 0x1p14f;
inline constexpr float kQueryScale = 0x1p14f;
inline constexpr float kWeightScale = 0x1p14f;
inline constexpr float kInverseScale = 0x1p6f;

// Keys and queries of a key head, [64 tokens, 128]: unit 8 (token / 8) + d / 16. Within sixteen
// components, 4 t + 2 j + e is column 8 j + 2 t + e: a lane has the four that it reads at once.
struct ChunkKeys {
  unsigned char keys[kChunkTokens * kChunkHeadDim * 4];
  unsigned char queries[kChunkTokens * kChunkHeadDim * 4];
};

// Of a value head, notation as in delta_net_prefill.cu. (I + A)^-1 and P are lower triangles of
// blocks of 16 x 16, two units each: block (i, j) is the i (i + 1) / 2 + j th.
inline constexpr int32_t kTriangleBytes = 10 * 16 * 16 * 4;
struct ChunkGates {
  unsigned char inverse[kTriangleBytes];
  unsigned char weights[kTriangleBytes];
  float decay[kChunkTokens];   // e^G
  float beta[kChunkTokens];    // 0 beyond the chunk's last token
  float to_end[kChunkTokens];  // e^(G_C - G)
};

static_assert(sizeof(ChunkKeys) % 128 == 0 && sizeof(ChunkGates) % 128 == 0);

// Chunks [first, first + count) of the step's, of the chunked segments [first_segment, ...): as
// many as the workspace takes.
struct ChunkRange {
  int32_t first = 0;
  int32_t count = 0;
  int32_t first_segment = 0;  // into StepTables::chunked
  int32_t num_segments = 0;
};

}  // namespace banyan::trunk::cuda
