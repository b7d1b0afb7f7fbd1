#include "common/io/pack_segment.h"

#include <cstring>

#include "common/io/pack_header.h"

namespace banyan {
namespace {

constexpr char kMagic[] = "BANYANSM";
constexpr uint64_t kVersion = 1;

}  // namespace

int64_t PackSegmentBytes(int64_t file_bytes) {
  return PackRoundUp(file_bytes, kPackSegmentPageBytes) + kPackSegmentPageBytes;
}

PackSegmentTrailer MakePackSegmentTrailer(int64_t file_bytes, std::span<const std::byte> header) {
  PackSegmentTrailer out{};
  std::memcpy(out.magic, kMagic, sizeof(out.magic));
  out.version = kVersion;
  out.file_bytes = static_cast<uint64_t>(file_bytes);
  out.header_checksum = PackChecksum(header);
  return out;
}

std::optional<uint64_t> PackBytesOfSegment(const MappedFile& file) {
  const uint64_t bytes = file.bytes().size();
  PackSegmentTrailer trailer;
  if (bytes < kPackSegmentPageBytes ||
      !file.Read(bytes - kPackSegmentPageBytes, std::as_writable_bytes(std::span(&trailer, 1)))
           .ok() ||
      std::memcmp(trailer.magic, kMagic, sizeof(trailer.magic)) != 0 ||
      trailer.version != kVersion || trailer.file_bytes > bytes ||
      static_cast<uint64_t>(PackSegmentBytes(static_cast<int64_t>(trailer.file_bytes))) != bytes) {
    return std::nullopt;
  }
  return trailer.file_bytes;
}

}  // namespace banyan
