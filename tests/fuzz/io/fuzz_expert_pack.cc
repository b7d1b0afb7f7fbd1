// Bytes as the beginning of a pack file. The first 8 bytes of the input are the size that the file
// claims to have; a checksum that does not match is made to, half of the time, so that the fields
// behind it are reached.
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "common/io/expert_pack.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t file_bytes = 0;
  if (size < sizeof(file_bytes)) return 0;
  std::memcpy(&file_bytes, data, sizeof(file_bytes));
  const auto* const first = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(first + sizeof(file_bytes), first + size);
  for (const bool repair : {false, true}) {
    if (repair && bytes.size() > 32) {
      uint64_t header_bytes = 0;
      std::memcpy(&header_bytes, bytes.data() + 16, 8);
      if (header_bytes > bytes.size() || header_bytes < 32) return 0;
      const uint64_t checksum = XXH3_64bits(bytes.data() + 32, header_bytes - 32);
      std::memcpy(bytes.data() + 24, &checksum, 8);
    }
    const auto header = banyan::ParseExpertPackHeader(bytes, file_bytes, "fuzz");
    if (!header.ok()) continue;
    const banyan::ExpertPackLayout layout = banyan::LayoutOf(*header);
    CHECK(static_cast<uint64_t>(layout.file_bytes) == file_bytes);
    CHECK(layout.payload_offset >= layout.header_bytes && layout.expert_bytes > 0);
    CHECK(layout.ExpertOffset(header->num_packed_experts()) == layout.file_bytes);
    CHECK(header->checksums.size() == static_cast<size_t>(header->num_packed_experts()));
    CHECK(header->moe_layers.back() < header->num_layers);
    const std::vector<std::byte> again = banyan::EncodeExpertPackHeader(*header);
    CHECK(again.size() <= bytes.size());
  }
  return 0;
}
