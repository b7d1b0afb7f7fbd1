// The AMX tile instructions, for kernels that take them as a template argument: tests put a model
// in their place. The process has the system's permission to use tiles: ReadCpuFeatures asked for
// it before it reported them.
#pragma once

#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>

namespace banyan {

// The operand of LDTILECFG for palette 1: eight tiles of up to 16 rows of up to 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Written as assembly because GCC 12's intrinsics do not tell the compiler that a tile load reads
// memory: stores before it could move behind it.
struct HardwareTiles {
  static constexpr const char* kTier = "amx";
  static void Configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static void Release() { __asm__ volatile("tilerelease" : : : "memory"); }
  template <int tile>
  static inline __attribute__((always_inline)) void Load(const std::byte* base, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                     :
                     : "i"(tile), "r"(base), "r"(stride)
                     : "memory");
  }
  template <int tile>
  static inline __attribute__((always_inline)) void Store(std::byte* base, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                     :
                     : "i"(tile), "r"(base), "r"(stride)
                     : "memory");
  }
  template <int tile>
  static inline __attribute__((always_inline)) void Zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // c += a (signed bytes) * b (signed bytes). Operands in AT&T order: b, a, c.
  template <int c, int a, int b>
  static inline __attribute__((always_inline)) void DotSS() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
  // c (f32) += a (bf16) * b (bf16).
  template <int c, int a, int b>
  static inline __attribute__((always_inline)) void DotBF16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};

}  // namespace banyan
#endif
