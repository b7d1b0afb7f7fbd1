// Bytes as a safetensors file; bytes that begin with '{' as the JSON header of a file with a small
// data area, so that mutations need not keep a length right.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "common/base/check.h"
#include "common/io/safetensors.h"

namespace banyan {
namespace {

// What callers rely on: tensors tile the data area and their sizes are those of their shapes.
void CheckHeader(const SafetensorsHeader& header, uint64_t data_bytes) {
  uint64_t cursor = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    CHECK(!tensor.name.empty());
    CHECK(tensor.begin == cursor && tensor.end >= tensor.begin && tensor.end <= data_bytes);
    CHECK(tensor.shape.rank() <= kMaxTensorRank);
    const auto elements = static_cast<uint64_t>(tensor.shape.num_elements());
    CHECK(elements * DTypeSizeBytes(tensor.dtype) == tensor.end - tensor.begin);
    cursor = tensor.end;
  }
  CHECK(cursor == data_bytes);
}

void Run(const uint8_t* data, size_t size) {
  if (size > 0 && data[0] == '{') {
    const std::string_view json(reinterpret_cast<const char*>(data), size);
    for (const uint64_t data_bytes : {uint64_t{0}, uint64_t{16}, uint64_t{4096}}) {
      const auto header = ParseSafetensorsHeader(json, data_bytes, "fuzz");
      if (header.ok()) CheckHeader(*header, data_bytes);
    }
    return;
  }
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto header = ParseSafetensors(bytes, "fuzz");
  if (header.ok()) CheckHeader(*header, size - header->data_offset);
}

}  // namespace
}  // namespace banyan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  banyan::Run(data, size);
  return 0;
}
