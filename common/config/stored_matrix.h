// A matrix as a checkpoint stores it: one plain tensor, or a quantised one with its companions,
// which may be in other shards. What a matrix is, its tensors say, never its name. Source:
// checkpoint spec 3 to 5; docs/formats/checkpoints.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/bnb_quant_state.h"
#include "common/config/stored_format.h"
#include "common/io/checkpoint.h"
#include "common/tensor/tensor_view.h"

namespace banyan {

inline constexpr DType kPlainDTypes[] = {DType::kBF16, DType::kF16, DType::kF32};

// Borrows the checkpoint.
struct StoredMatrix {
  std::string name;  // of the weight
  StoredFormat format = StoredFormat::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  TensorView weight;  // [rows, cols] if plain, int8 or fp8; nf4 and fp4: bytes, two codes in each
  const Checkpoint::Entry* entry = nullptr;  // of the weight
  // Companions; those that the format does not have are nullptr.
  const Checkpoint::Entry* scale = nullptr;  // .absmax, SCB, .weight_scale_inv, .weight_scale
  const Checkpoint::Entry* quant_map = nullptr;
  const Checkpoint::Entry* quant_state = nullptr;
  const Checkpoint::Entry* nested_absmax = nullptr;
  const Checkpoint::Entry* nested_quant_map = nullptr;
  const Checkpoint::Entry* weight_format = nullptr;

  std::vector<const Checkpoint::Entry*> companions() const;
  int64_t stored_bytes() const;  // with companions
  bool double_quantised() const { return nested_absmax != nullptr; }
};

// Looks at headers alone. `shape` is what the model needs; only matrices ([rows, cols]) may be
// quantised. kNotFound: the tensor or a companion is missing; kFailedPrecondition: another shape or
// a companion of another shape or dtype; kUnimplemented: a dtype or format that is not supported.
// Messages name tensor, expected, found and file.
absl::StatusOr<StoredMatrix> FindStoredMatrix(const Checkpoint& checkpoint, std::string_view name,
                                              const Shape& shape);

// The quant_state of a 4-bit matrix, compared with what the tensors say: type, shape, number of
// scales, nested or not. Reads its few bytes. kDataLoss, kUnimplemented.
absl::StatusOr<BnbQuantState> ReadQuantState(const Checkpoint& checkpoint,
                                             const StoredMatrix& matrix);

// What every value of the matrix is an element of once it is dequantised as the library does it:
// kBF16, kF16 or kF32. Reads a quant_state. Errors of ReadQuantState.
absl::StatusOr<DType> DequantizedDType(const Checkpoint& checkpoint, const StoredMatrix& matrix);

// Reads and checks the companions, then decodes rows to the values of the library, bit for bit.
// Immutable; thread-safe; borrows the checkpoint.
class MatrixDecoder {
 public:
  // kDataLoss: a scale that is not finite, a code table out of order, a quant_state that lies,
  // bytes that cannot be read; kUnimplemented: weight_format of LLM.int8 other than 0, block size.
  static absl::StatusOr<MatrixDecoder> Create(const Checkpoint& checkpoint, StoredMatrix matrix);

  const StoredMatrix& matrix() const { return matrix_; }
  DType dtype() const { return dtype_; }  // DequantizedDType

  // The bytes of the weight that rows [first, first + count) lie in.
  std::span<const std::byte> RowBytes(int64_t first, int64_t count) const;

  // Rows [first, first + count) to out [count, cols]; `raw` holds the bytes of RowBytes(first,
  // count). FP8 weights may be NaN, plain ones anything; all others are finite.
  void DecodeRows(int64_t first, int64_t count, const std::byte* raw, float* out) const;

  // 4-bit only: scales as f32, block by block of the flattened matrix.
  std::span<const float> absmax() const { return scales_; }
  // The codes stand for themselves in the NF4 pool format: its table, blocks of 64 within rows,
  // values rounded to bf16. Otherwise says in a few words what is different.
  bool IsPoolNF4(std::string* difference) const;

 private:
  MatrixDecoder() = default;
  absl::Status ReadBnb4(const Checkpoint& checkpoint);
  absl::Status ReadInt8(const Checkpoint& checkpoint);
  absl::Status ReadFP8(const Checkpoint& checkpoint);

  StoredMatrix matrix_;
  DType dtype_ = DType::kBF16;
  std::vector<float> scales_;  // resolved to f32
  float table_[16] = {};       // 4-bit
  int64_t block_size_ = 0;     // 4-bit: weights of a scale
  int64_t block_rows_ = 0;     // fp8: a scale is for block_rows x block_cols
  int64_t block_cols_ = 0;
};

}  // namespace banyan
