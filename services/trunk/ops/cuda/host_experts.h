// Routed experts on the device: their weights from a pool format to bf16, and their products with
// the rows that chose them. Contract: Backend::HostExperts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/quant/pool_format.h"

namespace banyan::trunk::cuda {

inline constexpr int kMaxHostExperts = 8;  // of one launch

// A matrix in bf16: [rows, cols] in rows of `stride` elements, which 8 divides. Elements beyond it
// count as zero.
struct Bf16Matrix {
  const uint16_t* data = nullptr;
  int32_t rows = 0;
  int32_t cols = 0;
  int32_t stride = 0;
};

// Packed matrices of [num_outputs, k] to bf16, exactly as common/quant/packed_matrix.h decodes them
// and rounded: one of each expert's in each launch of `matrices`.
struct DecodeMatrix {
  int64_t from = 0;  // bytes behind an expert's first
  int64_t to = 0;    // elements behind an expert's first
  int32_t panels = 0;
  int32_t chunks = 0;  // of a panel; rows of the result have 64 elements for each
};
struct DecodeLaunch {
  PoolFormat format = PoolFormat::kNF4;  // not kBF16
  float nf4_table[16] = {};              // kNF4Table (common/quant/nf4.h)
  const unsigned char* experts[kMaxHostExperts] = {};
  uint16_t* decoded[kMaxHostExperts] = {};
  int num_experts = 0;
  DecodeMatrix matrices[3];
};
cudaError_t DecodeExperts(const DecodeLaunch& args, cudaStream_t stream);

// Pairs are numbered from the first of the batch on. Slices of one expert have the same ones.
struct ExpertBatch {
  struct Expert {
    Bf16Matrix gate;
    Bf16Matrix up;
    Bf16Matrix down;
    int32_t first_pair = 0;
    int32_t num_pairs = 0;
    uint16_t* products = nullptr;  // bf16 [num_pairs, product_stride], of this one alone
  };
  Expert experts[kMaxHostExperts];
  int num_experts = 0;
  const uint16_t* rows = nullptr;  // bf16 [.., hidden_size]
  int32_t hidden_size = 0;
  const int32_t* pair_rows = nullptr;
  const float* pair_weights = nullptr;
  int32_t product_stride = 0;  // a multiple of 64: the width and zeros behind it
  float* hidden = nullptr;     // [.., hidden_size]
};

// products = silu(gate x) * (up x), of all experts.
cudaError_t ExpertGateUp(const ExpertBatch& batch, cudaStream_t stream);
// hidden += weight * down(products), expert after expert.
cudaError_t ExpertDown(const ExpertBatch& batch, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
