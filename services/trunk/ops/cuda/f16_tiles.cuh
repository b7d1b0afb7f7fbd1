// Matrices of f32, each value split in two f16, as tensor-core products take them from shared
// memory: units of 8 rows and 16 columns, which are four tiles of 8 x 8, 16 bytes a row: the high
// terms of the first eight columns and of the last eight, then the low terms. Whatever is read of a
// unit, rows or columns, comes from all banks at once and without padding, so that units lie in
// global memory as they do in shared memory.
// Two f16 hold 22 bits, where two bf16 hold 16, but are zero below 2^-25 and infinite from 2^16 on:
// values are scaled by powers of two on their way, the large ones to somewhere above 1.
// Device code only.
#pragma once

#include <cstdint>

#include "services/trunk/ops/cuda/device.cuh"

namespace banyan::trunk::cuda {

inline constexpr int kTileBytes = 128;
inline constexpr int kUnitBytes = 4 * kTileBytes;
inline constexpr int kTileRowBytes = 16;

// Four tiles as fragments: lane 4 g + t has of each row g, columns 2t and 2t + 1. Lane 8 i + r
// brings the address of row r of tile i.
__device__ __forceinline__ void LoadTiles(uint32_t (&tiles)[4], const unsigned char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
}

// The same, transposed: rows 2t and 2t + 1, column g.
__device__ __forceinline__ void LoadTilesTransposed(uint32_t (&tiles)[4],
                                                    const unsigned char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
}

// 16 bytes on their way to shared memory; CommitCopies closes a group of them, AwaitCopies waits
// until at most kPending groups are on their way.
__device__ __forceinline__ void CopyAsync16(unsigned char* shared, const unsigned char* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint32_t PackF16(float a, float b) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(b), "f"(a));
  return packed;
}

__device__ __forceinline__ float2 UnpackF16(uint32_t packed) {
  float2 v;
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
      : "=f"(v.x), "=f"(v.y)
      : "r"(packed));
  return v;
}

// a and b as sums of two f16 each, within 2^-22 of them (or 2^-26, if that is more).
__device__ __forceinline__ Split2 SplitF16(float a, float b) {
  const uint32_t hi = PackF16(a, b);
  const float2 high = UnpackF16(hi);
  return {hi, PackF16(a - high.x, b - high.y)};
}

// Mma (device.cuh) of f16.
__device__ __forceinline__ void MmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The left side of a product, [16, 16].
struct SplitLeft {
  uint32_t hi[4];
  uint32_t lo[4];
};

// Two neighbouring results of MmaF16, [16, 8] each, are a left side of the next product as they
// are.
__device__ __forceinline__ SplitLeft SplitResults(const float (&first)[4],
                                                  const float (&second)[4]) {
  SplitLeft left;
  const Split2 parts[4] = {SplitF16(first[0], first[1]), SplitF16(first[2], first[3]),
                           SplitF16(second[0], second[1]), SplitF16(second[2], second[3])};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    left.hi[i] = parts[i].hi;
    left.lo[i] = parts[i].lo;
  }
  return left;
}

// The right side of a product, [16, 8]: what LoadTiles gives of a unit, whose rows are then the
// product's columns.
struct SplitRight {
  uint32_t tiles[4];  // high terms, two tiles, then low
};

// c[i] += left[i] right[i], each product as three: what is dropped is within 2^-22 of the factors.
// The order is fixed; products of different results are interleaved, since each waits for the one
// before it.
template <int kCount>
__device__ __forceinline__ void MmaSplit(float (*c)[4], const SplitLeft& left,
                                         const SplitRight (&right)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) MmaF16(c[i], left.lo, right[i].tiles[0], right[i].tiles[1]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) MmaF16(c[i], left.hi, right[i].tiles[2], right[i].tiles[3]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) MmaF16(c[i], left.hi, right[i].tiles[0], right[i].tiles[1]);
}

}  // namespace banyan::trunk::cuda
