// A quantised or f16 matrix of the trunk as one that backends multiply with.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "common/config/stored_matrix.h"
#include "common/io/checkpoint.h"

namespace banyan::trunk {

struct DecodedMatrix {
  std::unique_ptr<std::byte[]> bytes;
  TensorView view;  // [rows, cols] of bytes, ResidentDType: the library's values, exactly
};

// One thread; a matrix of a bf16 model takes 2 bytes a weight, others 4. Errors of
// MatrixDecoder::Create; kDataLoss names a value that is not finite.
absl::StatusOr<DecodedMatrix> DecodeMatrix(const Checkpoint& checkpoint, StoredMatrix matrix);

}  // namespace banyan::trunk
