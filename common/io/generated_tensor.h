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

// Elements [first, first + out.size() / 2): element i is made of 16 bits of the splitmix64 of seed
// and i / 4 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). One thread;
// speed: docs/performance.md.
void GenerateBF16(uint64_t seed, float mean, float deviation, int64_t first,
                  std::span<std::byte> out);

}  // namespace banyan
