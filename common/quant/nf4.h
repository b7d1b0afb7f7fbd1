// NF4 as bitsandbytes has it: blocks of 64 weights along k with one f32 scale, w = bf16(table[code]
// * absmax). Sources: QLoRA (arXiv 2305.14314), appendix E; checkpoint spec 4.
//
// A chunk of a panel (common/quant/pool_format.h), 576 bytes:
//     0  u8 [8 pairs of outputs][32][2 outputs]: byte i of an output holds the code of input i in
//        its low half, of input 32 + i in its high half. So the 64 bytes of a pair, taken as 32
//        words, give by shifts of 0, 4, 8 and 12 the codes of inputs 0 to 31 and 32 to 63 of the
//        even output, then of the odd one, each in the low bits of word i for input i: the indices
//        of a 16-bit permutation of that output's 16 weights (VPERMW looks at 5 bits: a table
//        doubled to 32 words makes the fifth meaningless).
//   512  f32 [16 outputs]: absmax
// What lies beyond num_outputs or k has code 7 or a scale of 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/quant/bf16.h"
#include "common/quant/packed_matrix.h"

namespace banyan {

inline constexpr int64_t kNF4BlockSize = 64;
inline constexpr int64_t kNF4ChunkBytes = 576;
inline constexpr int64_t kNF4ChunkScales = 512;  // offset

// Checkpoint spec 4.3, bit for bit.
inline constexpr uint8_t kNF4Zero = 7;  // its code
inline constexpr float kNF4Table[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

struct NF4Block {
  float absmax;
  uint8_t codes[kNF4BlockSize];  // one a byte
};

// `w`: 64 finite weights. code = how many of the 15 midpoints between table entries are below
// w * (1 / absmax); on a midpoint the lower code. A block whose absmax has no finite reciprocal
// counts as zero: absmax 0, codes 7.
NF4Block EncodeNF4Block(const float* w);

// What bitsandbytes dequantises to for a bf16 checkpoint.
inline BF16 DecodeNF4(float absmax, uint8_t code) { return ToBF16(kNF4Table[code] * absmax); }

// As PackPanels and UnpackMatrix of packed_matrix.h, for this format.
void PackNF4Panels(const FloatMatrix& matrix, int64_t first_panel, int64_t end_panel,
                   std::byte* out);
void UnpackNF4(const std::byte* packed, int64_t num_outputs, int64_t k, float* out);

}  // namespace banyan
