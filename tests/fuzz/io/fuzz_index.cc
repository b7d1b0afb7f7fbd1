// Bytes as model.safetensors.index.json.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "common/io/safetensors_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto index = banyan::ParseSafetensorsIndex(json, "fuzz");
  if (!index.ok()) return 0;
  CHECK(!index->files.empty() && !index->tensors.empty());
  for (size_t i = 0; i < index->files.size(); ++i) {
    const std::string& file = index->files[i];
    CHECK(file.find('/') == std::string::npos && file.find('\0') == std::string::npos);
    CHECK(file.front() != '.');
    CHECK(i == 0 || index->files[i - 1] < file);
  }
  for (size_t i = 0; i < index->tensors.size(); ++i) {
    const auto& tensor = index->tensors[i];
    CHECK(tensor.file_idx >= 0 && static_cast<size_t>(tensor.file_idx) < index->files.size());
    CHECK(i == 0 || index->tensors[i - 1].name < tensor.name);
  }
  return 0;
}
