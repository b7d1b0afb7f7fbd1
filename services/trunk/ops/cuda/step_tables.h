// A step's plan as kernels see it: plain data, device pointers, valid until the next BeginStep.
#pragma once

#include <cstdint>

#include "services/trunk/ops/cuda/handover.h"

namespace banyan::trunk::cuda {

inline constexpr int32_t kPageTokens = 64;
inline constexpr int32_t kVectorsPerTile = 16;  // query vectors of one attention tile

struct Segment {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t first_position = 0;
  int32_t slot = 0;
  int32_t first_page = 0;
};

// Query vectors [first_vector, first_vector + 16) of a segment for one key-value head: vector v is
// row v / group, head v % group of the key-value head.
struct AttentionTile {
  int32_t segment = 0;
  int32_t first_vector = 0;
  int32_t num_vectors = 0;
  int32_t num_pages = 0;      // that its last row sees
  int32_t first_partial = 0;  // pages of the tiles before it
};

struct StepTables {
  int32_t num_rows = 0;
  int32_t num_segments = 0;
  int32_t num_recurrent = 0;
  int32_t num_chunked = 0;
  int32_t num_chunks = 0;  // of kOpsChunkTokens, of all chunked segments
  int32_t num_tiles = 0;
  const HandoverCounts* handovers = nullptr;  // before the step
  const Segment* segments = nullptr;          // [num_segments]
  const int32_t* recurrent = nullptr;         // segments whose DeltaNet runs token by token
  const int32_t* chunked = nullptr;           // and in chunks
  const int32_t* first_chunk = nullptr;       // [num_chunked]
  const int32_t* chunk_owner = nullptr;       // [num_chunks], into chunked
  const int32_t* row_segment = nullptr;       // [num_rows]
  const int32_t* token_ids = nullptr;         // [num_rows]
  const int32_t* positions = nullptr;         // [num_rows]
  const int32_t* page_ids = nullptr;          // of every segment, from its first_page
  const float* rope_cos = nullptr;            // [num_rows, rotary_dim / 2]
  const float* rope_sin = nullptr;
  const AttentionTile* tiles = nullptr;  // [num_tiles]
};

}  // namespace banyan::trunk::cuda
