#include "common/io/generated_tensor.h"

#include <xxhash.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/bf16.h"

namespace banyan {
namespace {

static_assert(std::endian::native == std::endian::little);

// Of one block: no block crosses a multiple of 2^32 words.
constexpr int kBlockWords = 32;
constexpr int kLineWords = static_cast<int>(kGeneratedLineBytes / 4);
constexpr int kBlockElements = 2 * kBlockWords;

struct Keys {
  uint32_t first;
  uint32_t second;
};

Keys KeysOf(uint64_t seed, uint64_t idx) {
  uint64_t z = seed + ((idx >> 32) + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

inline __attribute__((always_inline)) uint32_t Mix(const Keys& keys, uint32_t counter) {
  uint32_t x = counter ^ keys.first;
  x = (x ^ x >> 16) * 0x7feb352du;
  x += keys.second;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// Round to nearest even; the values are finite.
inline __attribute__((always_inline)) uint16_t Round(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct Line {
  float mean;
  float step;
};

inline __attribute__((always_inline)) uint16_t Element(const Line& line, int16_t i) {
  return Round(line.mean + static_cast<float>(i) * line.step);
}

// Blocks from word `word`, a multiple of kBlockWords. Separate loops over arrays: compilers turn
// each into vector instructions.
inline __attribute__((always_inline)) void Blocks(uint64_t seed, const Line& line, uint64_t word,
                                                  int64_t num_blocks, std::byte* out) {
  Keys keys = KeysOf(seed, word);
  for (int64_t b = 0; b < num_blocks; ++b, word += kBlockWords, out += kBlockElements * 2) {
    const auto low = static_cast<uint32_t>(word);
    if (low == 0) keys = KeysOf(seed, word);
    uint32_t words[kBlockWords];
    for (int i = 0; i < kBlockWords; ++i) words[i] = Mix(keys, low + static_cast<uint32_t>(i));
    int16_t halves[kBlockElements];
    std::memcpy(halves, words, sizeof(halves));
    uint16_t values[kBlockElements];
    for (int i = 0; i < kBlockElements; ++i) values[i] = Element(line, halves[i]);
    std::memcpy(out, values, sizeof(values));
  }
}

inline __attribute__((always_inline)) void Lines(uint64_t seed, uint64_t word, int64_t num_lines,
                                                 std::byte* out) {
  Keys keys = KeysOf(seed, word);
  for (int64_t l = 0; l < num_lines; ++l, word += kLineWords, out += kGeneratedLineBytes) {
    const auto low = static_cast<uint32_t>(word);
    if (low == 0) keys = KeysOf(seed, word);
    uint32_t words[kLineWords];
    for (int i = 0; i < kLineWords; ++i) words[i] = Mix(keys, low + static_cast<uint32_t>(i));
    std::memcpy(out, words, sizeof(words));
  }
}

using BlocksFn = void (*)(uint64_t, const Line&, uint64_t, int64_t, std::byte*);

void BlocksPortably(uint64_t seed, const Line& line, uint64_t word, int64_t n, std::byte* out) {
  Blocks(seed, line, word, n, out);
}

#if defined(__x86_64__)
#if defined(__clang__)  // has no attribute for the width, and takes 256 bits
#define BANYAN_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#else
#define BANYAN_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#endif

__attribute__((target("avx2"))) void BlocksAvx2(uint64_t seed, const Line& line, uint64_t word,
                                                int64_t n, std::byte* out) {
  Blocks(seed, line, word, n, out);
}

__attribute__((target(BANYAN_AVX512))) void BlocksAvx512(uint64_t seed, const Line& line,
                                                         uint64_t word, int64_t n, std::byte* out) {
  Blocks(seed, line, word, n, out);
}

__attribute__((target("avx2"))) void LinesAvx2(uint64_t seed, uint64_t word, int64_t n,
                                               std::byte* out) {
  Lines(seed, word, n, out);
}

__attribute__((target(BANYAN_AVX512))) void LinesAvx512(uint64_t seed, uint64_t word, int64_t n,
                                                        std::byte* out) {
  Lines(seed, word, n, out);
}
#endif

BlocksFn BlocksOf(GeneratorTier tier) {
#if defined(__x86_64__)
  if (tier == GeneratorTier::kAvx512) return BlocksAvx512;
  if (tier == GeneratorTier::kAvx2) return BlocksAvx2;
#endif
  CHECK(tier == GeneratorTier::kPortable);
  return BlocksPortably;
}

GeneratorTier FindBestTier() {
  for (const GeneratorTier tier : {GeneratorTier::kAvx512, GeneratorTier::kAvx2}) {
    if (HasGeneratorTier(tier)) return tier;
  }
  return GeneratorTier::kPortable;
}

GeneratorTier BestTier() {
  static const GeneratorTier tier = FindBestTier();
  return tier;
}

}  // namespace

uint64_t GeneratedTensorSeed(std::string_view name) {
  return XXH3_64bits(name.data(), name.size());
}

bool HasGeneratorTier(GeneratorTier tier) {
#if defined(__x86_64__)
  if (tier == GeneratorTier::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (tier == GeneratorTier::kAvx2) return __builtin_cpu_supports("avx2") != 0;
#endif
  return tier == GeneratorTier::kPortable;
}

void GenerateLines(uint64_t seed, uint64_t first_line, int64_t num_lines, std::byte* out) {
  GenerateLines(BestTier(), seed, first_line, num_lines, out);
}

void GenerateLines(GeneratorTier tier, uint64_t seed, uint64_t first_line, int64_t num_lines,
                   std::byte* out) {
  const uint64_t word = first_line * kLineWords;
#if defined(__x86_64__)
  switch (tier) {
    case GeneratorTier::kAvx512:
      return LinesAvx512(seed, word, num_lines, out);
    case GeneratorTier::kAvx2:
      return LinesAvx2(seed, word, num_lines, out);
    case GeneratorTier::kPortable:
      break;
  }
#endif
  CHECK(tier == GeneratorTier::kPortable);
  Lines(seed, word, num_lines, out);
}

void GenerateBF16(GeneratorTier tier, uint64_t seed, float mean, float deviation, int64_t first,
                  std::span<std::byte> out) {
  CHECK(out.size() % sizeof(BF16) == 0 && first >= 0);
  // int16 times this is uniform in +-sqrt(3) deviations.
  const Line line = {mean, deviation * std::sqrt(3.0f) / 32768.0f};
  const auto count = static_cast<int64_t>(out.size() / sizeof(BF16));
  const auto put = [&](int64_t i) {
    const int64_t at = first + i;
    const auto word = static_cast<uint64_t>(at / 2);
    const uint32_t bits = Mix(KeysOf(seed, word), static_cast<uint32_t>(word));
    const uint16_t value =
        Element(line, static_cast<int16_t>(static_cast<uint16_t>(bits >> (at % 2 * 16))));
    std::memcpy(out.data() + i * 2, &value, 2);
  };
  int64_t i = 0;
  while (i < count && (first + i) % kBlockElements != 0) put(i++);
  const int64_t num_blocks = (count - i) / kBlockElements;
  if (num_blocks > 0) {
    BlocksOf(tier)(seed, line, static_cast<uint64_t>((first + i) / 2), num_blocks,
                   out.data() + i * 2);
  }
  i += num_blocks * kBlockElements;
  while (i < count) put(i++);
}

void GenerateBF16(uint64_t seed, float mean, float deviation, int64_t first,
                  std::span<std::byte> out) {
  GenerateBF16(BestTier(), seed, mean, deviation, first, out);
}

}  // namespace banyan
