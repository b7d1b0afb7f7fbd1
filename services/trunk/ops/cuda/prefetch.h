// What a kernel may ask the memory for beside its own work: weights of the kernels that come next.
#pragma once

#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int kPrefetchCtas = 64;
inline constexpr int kMaxPrefetchRanges = 4;

struct PrefetchRange {
  const void* from = nullptr;  // 16-byte aligned
  int64_t bytes = 0;           // a multiple of 16
};

struct Prefetch {
  PrefetchRange ranges[kMaxPrefetchRanges];
  int num_ranges = 0;
};

}  // namespace banyan::trunk::cuda
