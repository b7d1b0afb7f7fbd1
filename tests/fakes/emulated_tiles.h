// A model of the AMX tile instructions that CHECKs what they would fault on: unconfigured tiles,
// shapes that do not fit, rows beyond the palette.
#pragma once

#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/base/check.h"
#include "common/cpu/amx_tiles.h"
#include "common/quant/bf16.h"

namespace banyan::test {

// Palette 1 as the architecture manual describes it (volume 1, chapter 18).
struct TileState {
  bool configured = false;
  TileConfig config;
  uint8_t tiles[8][16][64];
};
inline thread_local TileState state;

struct EmulatedTiles {
  static constexpr const char* kTier = "amx_emulated";
  static void Configure(const TileConfig& config) {
    CHECK(config.palette == 1 && config.start_row == 0);
    for (const uint8_t byte : config.reserved) CHECK(byte == 0);
    for (int tile = 0; tile < 16; ++tile) {
      CHECK(config.rows[tile] <= (tile < 8 ? 16 : 0));
      CHECK(config.row_bytes[tile] <= (tile < 8 ? 64 : 0));
    }
    state.configured = true;
    state.config = config;
    std::memset(state.tiles, 0, sizeof(state.tiles));
  }
  static void Release() { state.configured = false; }
  static int Rows(int tile) {
    CHECK(state.configured && state.config.rows[tile] > 0 && state.config.row_bytes[tile] > 0);
    return state.config.rows[tile];
  }
  template <int tile>
  static void Zero() {
    (void)Rows(tile);
    std::memset(state.tiles[tile], 0, sizeof(state.tiles[tile]));
  }
  template <int tile>
  static void Load(const std::byte* base, int64_t stride) {
    Zero<tile>();
    for (int row = 0; row < Rows(tile); ++row) {
      std::memcpy(state.tiles[tile][row], base + row * stride, state.config.row_bytes[tile]);
    }
  }
  template <int tile>
  static void Store(std::byte* base, int64_t stride) {
    for (int row = 0; row < Rows(tile); ++row) {
      std::memcpy(base + row * stride, state.tiles[tile][row], state.config.row_bytes[tile]);
    }
  }
  template <int c, int a, int b>
  static void DotSS() {
    CHECK(Rows(c) == Rows(a) && state.config.row_bytes[c] == state.config.row_bytes[b]);
    CHECK(state.config.row_bytes[a] == 4 * Rows(b));
    for (int m = 0; m < Rows(a); ++m) {
      for (int n = 0; n < state.config.row_bytes[c] / 4; ++n) {
        int32_t sum;
        std::memcpy(&sum, &state.tiles[c][m][4 * n], 4);
        for (int k = 0; k < state.config.row_bytes[a]; ++k) {
          sum += static_cast<int8_t>(state.tiles[a][m][k]) *
                 static_cast<int8_t>(state.tiles[b][k / 4][4 * n + k % 4]);
        }
        std::memcpy(&state.tiles[c][m][4 * n], &sum, 4);
      }
    }
  }
  // Operation of TDPBF16PS: even and odd products summed apart, then added. Denormals stay.
  template <int c, int a, int b>
  static void DotBF16() {
    CHECK(Rows(c) == Rows(a) && state.config.row_bytes[c] == state.config.row_bytes[b]);
    CHECK(state.config.row_bytes[a] == 4 * Rows(b));
    const auto value = [](const uint8_t* at) {
      BF16 out;
      std::memcpy(&out, at, sizeof(out));
      return ToFloat(out);
    };
    const int columns = state.config.row_bytes[c] / 4;
    const int pairs = Rows(b);
    float right[2][16][16] = {};  // of an even or odd product, pair, column
    for (int k = 0; k < pairs; ++k) {
      for (int n = 0; n < columns; ++n) {
        for (int i = 0; i < 2; ++i) right[i][k][n] = value(&state.tiles[b][k][4 * n + 2 * i]);
      }
    }
    for (int m = 0; m < Rows(a); ++m) {
      float parts[2][16] = {};
      for (int k = 0; k < pairs; ++k) {
        for (int i = 0; i < 2; ++i) {
          const float left = value(&state.tiles[a][m][4 * k + 2 * i]);
          for (int n = 0; n < 16; ++n) parts[i][n] += left * right[i][k][n];
        }
      }
      for (int n = 0; n < columns; ++n) {
        float sum;
        std::memcpy(&sum, &state.tiles[c][m][4 * n], 4);
        sum += parts[0][n] + parts[1][n];
        std::memcpy(&state.tiles[c][m][4 * n], &sum, 4);
      }
    }
  }
};

}  // namespace banyan::test
#endif
