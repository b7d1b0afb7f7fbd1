// Bytes as the beginning of an expert pack (pack_header_input.h).
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/base/check.h"
#include "common/io/expert_pack.h"
#include "tests/fuzz/io/pack_header_input.h"

namespace banyan {
namespace {

void Parse(const std::vector<std::byte>& bytes, uint64_t file_bytes) {
  const auto header = ParseExpertPackHeader(bytes, file_bytes, "fuzz");
  if (!header.ok()) return;
  const ExpertPackLayout layout = LayoutOf(*header);
  CHECK(static_cast<uint64_t>(layout.file_bytes) == file_bytes);
  CHECK(layout.payload_offset >= layout.header_bytes && layout.expert_bytes > 0);
  CHECK(layout.ExpertOffset(header->num_packed_experts()) == layout.file_bytes);
  CHECK(header->checksums.size() == static_cast<size_t>(header->num_packed_experts()));
  CHECK(header->moe_layers.back() < header->num_layers);
  const std::vector<std::byte> again = EncodeExpertPackHeader(*header);
  CHECK(again.size() <= bytes.size());
}

}  // namespace
}  // namespace banyan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  banyan::test::ForPackHeaders(data, size, banyan::Parse);
  return 0;
}
