// What the headers of all pack files share: magic, version, size and checksum before the fields.
// Bytes: docs/formats/expert_pack.md and docs/formats/trunk_pack.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/mapped_file.h"

namespace banyan {

inline constexpr int64_t kPackPayloadAlignment = 2 << 20;  // a huge page
inline constexpr int64_t kPackPreambleBytes = 32;
inline constexpr int64_t kMaxPackHeaderBytes = int64_t{1} << 30;
inline constexpr size_t kPackMagicBytes = 8;
inline constexpr size_t kPackFingerprintBytes = 32;  // hex digits

// A kind of pack: what its files begin with, and what this program reads of it.
struct PackKind {
  std::string_view magic;
  uint32_t version = 1;
  int64_t least_header_bytes = kPackPreambleBytes;
};

constexpr int64_t PackRoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// XXH3-64.
uint64_t PackChecksum(std::span<const std::byte> bytes);

// Little-endian fields, one after the other.
class PackHeaderWriter {
 public:
  // The preamble; size and checksum are filled in by Seal.
  explicit PackHeaderWriter(const PackKind& kind);

  void U8(uint8_t value) { out_.push_back(std::byte{value}); }
  void U32(int64_t value) { Number(static_cast<uint64_t>(value), 4); }
  void U64(uint64_t value) { Number(value, 8); }
  void Text(std::string_view text);
  void ZeroTo(size_t size) { out_.resize(size); }
  size_t size() const { return out_.size(); }
  std::vector<std::byte> Seal() &&;

 private:
  void Number(uint64_t value, int bytes);
  std::vector<std::byte> out_;
};

// The same backwards. What lies beyond the end reads as 0; `overrun` tells.
class PackHeaderReader {
 public:
  explicit PackHeaderReader(std::span<const std::byte> bytes, size_t at = kPackPreambleBytes)
      : bytes_(bytes), at_(at) {}
  uint8_t U8() { return static_cast<uint8_t>(Number(1)); }
  int64_t U32() { return static_cast<int64_t>(Number(4)); }
  uint64_t U64() { return Number(8); }
  std::string Text(size_t size);
  size_t at() const { return at_; }
  bool overrun() const { return overrun_; }

 private:
  uint64_t Number(size_t bytes);
  std::span<const std::byte> bytes_;
  size_t at_;
  bool overrun_ = false;
};

struct PackFieldRange {
  const char* name;
  int64_t found;
  int64_t min;
  int64_t max;
};
// kDataLoss names the first field out of its range.
absl::Status CheckPackFields(std::initializer_list<PackFieldRange> ranges, std::string_view source);
// 32 hex digits.
absl::Status CheckPackFingerprint(std::string_view fingerprint, std::string_view source);

// The header of a file of `file_bytes` that begins with `bytes`: those up to its end, once magic,
// version, size and checksum are right. kDataLoss: not such a pack, cut, damaged; kUnimplemented: a
// version that this program does not know. Messages begin with `source`.
absl::StatusOr<std::span<const std::byte>> CheckPackHeader(std::span<const std::byte> bytes,
                                                           uint64_t file_bytes,
                                                           const PackKind& kind,
                                                           std::string_view source);

// Reads as much of a file as CheckPackHeader needs, by pread. The same errors, of the preamble.
absl::StatusOr<std::vector<std::byte>> ReadPackHeader(const MappedFile& file, const PackKind& kind);

// A part of a pack that has a checksum.
struct PackPiece {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t checksum = 0;
};

}  // namespace banyan
