// Bytes as the beginning of a trunk pack (pack_header_input.h).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/base/check.h"
#include "common/io/trunk_pack.h"
#include "tests/fuzz/io/pack_header_input.h"

namespace banyan {
namespace {

void Parse(const std::vector<std::byte>& bytes, uint64_t file_bytes) {
  const auto header = ParseTrunkPackHeader(bytes, file_bytes, "fuzz");
  if (!header.ok()) return;
  const TrunkPackLayout layout = LayoutOf(*header);
  CHECK(static_cast<uint64_t>(layout.file_bytes) == file_bytes);
  CHECK(layout.payload_offset >= layout.header_bytes);
  // Every array lies behind the one before it and within the file.
  CHECK(!header->matrices.empty() && layout.places.size() == header->matrices.size());
  int64_t end = layout.payload_offset;
  for (size_t i = 0; i < header->matrices.size(); ++i) {
    const TrunkPackMatrix& matrix = header->matrices[i];
    CHECK(matrix.checksums.size() == static_cast<size_t>(matrix.num_checksums()));
    CHECK(layout.places[i].values >= end && layout.places[i].values % 64 == 0);
    end = layout.places[i].values + matrix.rows * matrix.row_bytes();
    if (!matrix.has_scales()) continue;
    CHECK(layout.places[i].scales >= end && layout.places[i].scales % 64 == 0);
    end = layout.places[i].scales + matrix.rows * matrix.row_scales() * 4;
  }
  CHECK(end <= layout.file_bytes);
  // What was read says everything: written again it is the same header.
  const std::vector<std::byte> again = EncodeTrunkPackHeader(*header);
  CHECK(again.size() <= bytes.size());
  CHECK(std::equal(again.begin(), again.end(), bytes.begin()));
}

}  // namespace
}  // namespace banyan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  banyan::test::ForPackHeaders(data, size, banyan::Parse);
  return 0;
}
