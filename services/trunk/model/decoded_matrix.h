// Quantised and f16 matrices of the trunk as ones that backends multiply with.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/stored_matrix.h"
#include "common/io/checkpoint.h"
#include "common/parallel/worker_pool.h"

namespace banyan::trunk {

// Of a thread that decodes.
struct DecodeBuffers {
  std::vector<std::byte> raw;
  std::vector<float> values;
};

// Rows [first, first + rows) to out [rows, cols] of ResidentDType(decoder.dtype()): the library's
// values, exactly. kDataLoss: bytes that cannot be read, or tensor and place of a value that is not
// finite. Thread-safe with buffers of its own for each thread.
absl::Status DecodeRows(const Checkpoint& checkpoint, const MatrixDecoder& decoder, int64_t first,
                        int64_t rows, DecodeBuffers& buffers, std::byte* out);

struct DecodedMatrix {
  std::unique_ptr<std::byte[]> bytes;
  TensorView view;  // [rows, cols] of bytes, ResidentDType
};

// With all threads of the pool, or one where there is none; a matrix of a bf16 model takes 2 bytes
// a weight, others 4. Errors of MatrixDecoder::Create and DecodeRows.
absl::StatusOr<DecodedMatrix> DecodeMatrix(const Checkpoint& checkpoint, StoredMatrix matrix,
                                           WorkerPool* pool);

}  // namespace banyan::trunk
