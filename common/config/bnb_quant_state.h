// X.weight.quant_state.bitsandbytes__{nf4,fp4}: what bitsandbytes says of a 4-bit matrix, JSON in a
// tensor of bytes. Source: checkpoint spec 4.2.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/tensor/dtype.h"
#include "common/tensor/shape.h"

namespace banyan {

inline constexpr size_t kMaxQuantStateBytes = 65536;

struct BnbQuantState {
  std::string quant_type;      // "nf4" or "fp4"
  int64_t block_size = 64;     // weights that share a scale
  DType dtype = DType::kBF16;  // of dequantised values: kBF16, kF16 or kF32
  Shape shape;                 // [rows, cols] of the matrix
  bool nested = false;         // the scales are quantised themselves, with what follows
  int64_t nested_block_size = 256;
  float nested_offset = 0;
};

// `source` names the text in messages. kDataLoss: malformed, a key missing, of another type or out
// of range, or only some of the nested keys; kUnimplemented: a quant_type, block size, dtype or key
// that Banyan does not know.
absl::StatusOr<BnbQuantState> ParseBnbQuantState(std::string_view json, std::string_view source);

}  // namespace banyan
