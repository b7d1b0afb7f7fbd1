// The highest logits of each row, in two kernels: pieces of a row each leave a sorted list of their
// highest, and a CTA a row makes one of these lists. Contract: Backend::TopLogits.
//
// A logit is a key of 64 bits, its order above the complement of its id: keys are distinct, so that
// the highest are the same whatever order they are looked at in.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace banyan::trunk::cuda {

inline constexpr int kMaxTop = 64;            // of a list
inline constexpr float kTopBound = 0x1p100f;  // above all logits, negated below
inline constexpr int kTopTile = 4096;
inline constexpr int kMaxTopLists = 64;

// Lists of a row: one for each tile, or for every n-th.
constexpr int TopLists(int64_t num_ids) {
  const int64_t tiles = (num_ids + kTopTile - 1) / kTopTile;
  return static_cast<int>(tiles < kMaxTopLists ? tiles : kMaxTopLists);
}
// Keys of the lists, and for each whether all of its logits are within the bound.
constexpr int64_t TopScratchBytes(int64_t num_rows, int64_t num_ids) {
  return num_rows * TopLists(num_ids) *
         static_cast<int64_t>(kMaxTop * sizeof(uint64_t) + sizeof(uint32_t));
}

struct TopLogitsLaunch {
  int32_t vocab_size = 0;
  int32_t num_ids = 0;
  int32_t k = 0;
  const float* logits = nullptr;
  float* scores = nullptr;
  int32_t* ids = nullptr;
  int32_t* bounded = nullptr;
  void* scratch = nullptr;  // TopScratchBytes(num_rows, num_ids), 8-byte aligned
};

// 1 <= k <= kMaxTop, k <= num_ids <= vocab_size.
cudaError_t TopLogits(int32_t num_rows, const TopLogitsLaunch& args, cudaStream_t stream);

}  // namespace banyan::trunk::cuda
