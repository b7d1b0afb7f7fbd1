// A pack in shared memory: an image of the file and one more page that says that it is whole.
// Bytes: docs/formats/expert_pack.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/io/mapped_file.h"

namespace banyan {

inline constexpr int64_t kPackSegmentPageBytes = 4096;

// The last page begins with it; written when all before it is there.
struct PackSegmentTrailer {
  char magic[8];
  uint64_t version;
  uint64_t file_bytes;
  uint64_t header_checksum;
};

// Of the segment of a pack.
int64_t PackSegmentBytes(int64_t file_bytes);
PackSegmentTrailer MakePackSegmentTrailer(int64_t file_bytes, std::span<const std::byte> header);

// The size of the pack whose segment `file` is; none where it is not a whole segment.
std::optional<uint64_t> PackBytesOfSegment(const MappedFile& file);

}  // namespace banyan
