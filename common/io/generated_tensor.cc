#include "common/io/generated_tensor.h"

#include <xxhash.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/bf16.h"

namespace banyan {
namespace {

constexpr int64_t kPerWord = 4;

inline uint64_t Mix(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Round to nearest even; the values are finite.
inline uint16_t Round(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t Element(uint64_t word, int64_t lane, float mean, float step) {
  const auto bits = static_cast<int16_t>(static_cast<uint16_t>(word >> (16 * lane)));
  return Round(mean + static_cast<float>(bits) * step);
}

}  // namespace

uint64_t GeneratedTensorSeed(std::string_view name) {
  return XXH3_64bits(name.data(), name.size());
}

void GenerateBF16(uint64_t seed, float mean, float deviation, int64_t first,
                  std::span<std::byte> out) {
  CHECK(out.size() % sizeof(BF16) == 0);
  // int16 times this is uniform in +-sqrt(3) deviations.
  const float step = deviation * std::sqrt(3.0f) / 32768.0f;
  const auto count = static_cast<int64_t>(out.size() / sizeof(BF16));
  const auto put = [&](int64_t i) {
    const int64_t at = first + i;
    const uint16_t value =
        Element(Mix(seed, static_cast<uint64_t>(at / kPerWord)), at % kPerWord, mean, step);
    std::memcpy(out.data() + i * 2, &value, 2);
  };
  int64_t i = 0;
  while (i < count && (first + i) % kPerWord != 0) put(i++);
  for (; i + kPerWord <= count; i += kPerWord) {
    const uint64_t word = Mix(seed, static_cast<uint64_t>((first + i) / kPerWord));
    uint16_t values[kPerWord];
    for (int64_t lane = 0; lane < kPerWord; ++lane) {
      values[lane] = Element(word, lane, mean, step);
    }
    std::memcpy(out.data() + i * 2, values, sizeof(values));
  }
  while (i < count) put(i++);
}

}  // namespace banyan
