// Pseudo-random weights in place of a checkpoint's: any part of a tensor, on any host, in any
// order, has the same values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/tensor/shape.h"

namespace banyan {

// A bf16 tensor of uniform values with this mean and standard deviation.
struct GeneratedTensor {
  std::string name;
  Shape shape;
  float mean = 0;
  float deviation = 1;
};

uint64_t GeneratedTensorSeed(std::string_view name);

// Word `w` of the stream of a seed: the high half of w chooses, with the seed, two 32-bit keys by
// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014); its low
// half is mixed with them as in "lowbias32" (C. Wellons, Prospecting for hash functions, 2018): 32
// bits suffice for weights, and vectors of them need no 64-bit product.
//
// Elements [first, first + out.size() / 2) of a tensor: bf16(mean + i * step) with i the low half,
// as a signed number, of word e / 2 for an even element e and its high half for an odd one, and
// step = deviation * sqrt(3) / 2^15; f32 arithmetic, nothing fused. One thread; the same bits in
// every instruction set. Speed: docs/performance.md.
void GenerateBF16(uint64_t seed, float mean, float deviation, int64_t first,
                  std::span<std::byte> out);

// The instruction sets that GenerateBF16 chooses from, for tests and benchmarks; it takes the last
// that this CPU has.
enum class GeneratorTier : uint8_t { kPortable, kAvx2, kAvx512 };
bool HasGeneratorTier(GeneratorTier tier);
void GenerateBF16(GeneratorTier tier, uint64_t seed, float mean, float deviation, int64_t first,
                  std::span<std::byte> out);

}  // namespace banyan
