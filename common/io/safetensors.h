// Headers of safetensors files: bounds-checked, payload never touched.
// Layout: u64 little-endian header length N, N bytes of JSON, data area to the end of the file
// (docs/formats/safetensors.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/io/mapped_file.h"
#include "common/tensor/dtype.h"
#include "common/tensor/shape.h"

namespace banyan {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr int kMaxTensorRank = 16;

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;         // no product of leading dimensions overflows int64
  uint64_t begin = 0;  // bytes from the start of the data area
  uint64_t end = 0;    // exclusive; end - begin = elements * element size
};

struct SafetensorsHeader {
  uint64_t data_offset = 0;                // of the data area in the file: 8 + N
  std::vector<SafetensorsTensor> tensors;  // by offset; they tile the data area exactly
};

// The JSON text between the length and the data area. `data_bytes` is what the file holds after it.
// kDataLoss: malformed JSON, duplicate tensor, shape against data_offsets, range outside the data
// area, overlap, hole, bytes left over; kUnimplemented: a dtype this program does not know. The
// message begins with `source` and names the tensor, what was expected and what was found.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t data_bytes,
                                                         std::string_view source);

// The same for a file's bytes, header length included.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   std::string_view source);

// The same for a mapped file, read by pread so that a file truncated meanwhile is an error and not
// a fault. `header_bytes` receives length and JSON text as they stand in the file.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const MappedFile& file,
                                                        std::string_view source,
                                                        std::string* header_bytes);

}  // namespace banyan
