// DeltaNetShape (ops.h) for kernels, which see neither abseil nor the checked entries.
#pragma once

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int32_t kMaxDeltaHeadDim = 128;  // of keys and of values

struct DeltaShape {
  int32_t num_key_heads = 0;
  int32_t num_value_heads = 0;
  int32_t key_head_dim = 0;
  int32_t value_head_dim = 0;
  int32_t conv_taps = 0;
  float eps = 0;
  // Derived, so that kernels need not.
  int32_t ratio = 0;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  int32_t conv_dim = 0;
  int32_t qkvz_dim = 0;
  int32_t group_dim = 0;  // columns of a key head in qkvz
};

}  // namespace banyan::trunk::cuda
