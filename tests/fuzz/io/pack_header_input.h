// Bytes of a fuzzer as the beginning of a pack file. The first 8 are the size that the file claims
// to have; a checksum of the header that does not match is made to in a second turn, so that the
// fields behind it are reached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/io/pack_header.h"

namespace banyan::test {

// Calls parse(bytes, file_bytes) with the bytes as they are and with the checksum that fits them.
template <typename Parse>
void ForPackHeaders(const uint8_t* data, size_t size, const Parse& parse) {
  constexpr auto kPreambleBytes = static_cast<size_t>(kPackPreambleBytes);
  constexpr size_t kHeaderBytesAt = 16;
  constexpr size_t kChecksumAt = 24;
  uint64_t file_bytes = 0;
  if (size < sizeof(file_bytes)) return;
  std::memcpy(&file_bytes, data, sizeof(file_bytes));
  const auto* const first = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(first + sizeof(file_bytes), first + size);
  parse(bytes, file_bytes);
  if (bytes.size() <= kPreambleBytes) return;
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data() + kHeaderBytesAt, sizeof(header_bytes));
  if (header_bytes > bytes.size() || header_bytes < kPreambleBytes) return;
  const uint64_t checksum =
      PackChecksum({bytes.data() + kPreambleBytes, header_bytes - kPreambleBytes});
  std::memcpy(bytes.data() + kChecksumAt, &checksum, sizeof(checksum));
  parse(bytes, file_bytes);
}

}  // namespace banyan::test
