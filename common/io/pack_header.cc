#include "common/io/pack_header.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr size_t kVersionAt = 8;
constexpr size_t kHeaderBytesAt = 16;
constexpr size_t kChecksumAt = 24;

uint64_t HeaderChecksum(std::span<const std::byte> header) {
  return PackChecksum(header.subspan(kPackPreambleBytes));
}

absl::Status CheckPreamble(std::span<const std::byte> bytes, uint64_t file_bytes,
                           const PackKind& kind, std::string_view source) {
  if (file_bytes < static_cast<uint64_t>(kPackPreambleBytes) ||
      bytes.size() < static_cast<size_t>(kPackPreambleBytes)) {
    return DataLossF("{}: {} bytes, too short for a pack's header of at least {}", source,
                     file_bytes, kPackPreambleBytes);
  }
  if (std::memcmp(bytes.data(), kind.magic.data(), kPackMagicBytes) != 0) {
    return DataLossF("{}: not a pack: begins with '{}', expected '{}'", source,
                     Printable({reinterpret_cast<const char*>(bytes.data()), kPackMagicBytes}),
                     kind.magic);
  }
  PackHeaderReader reader(bytes, kVersionAt);
  if (const int64_t version = reader.U32(); version != kind.version) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: pack version {}, this program reads version {}", source, version,
                   kind.version);
  }
  if (const int64_t reserved = reader.U32(); reserved != 0) {
    return DataLossF("{}: header: bytes 12 to 15 hold {}, expected 0", source, reserved);
  }
  const uint64_t header_bytes = reader.U64();
  if (header_bytes < static_cast<uint64_t>(kind.least_header_bytes) ||
      header_bytes > static_cast<uint64_t>(kMaxPackHeaderBytes)) {
    return DataLossF("{}: header size {}, expected {} to {}", source, header_bytes,
                     kind.least_header_bytes, kMaxPackHeaderBytes);
  }
  if (header_bytes > file_bytes) {
    return DataLossF("{}: header size {}, but the file has {} bytes; it was cut", source,
                     header_bytes, file_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t PackChecksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

PackHeaderWriter::PackHeaderWriter(const PackKind& kind) {
  CHECK(kind.magic.size() == kPackMagicBytes);
  Text(kind.magic);
  U32(kind.version);
  ZeroTo(kPackPreambleBytes);
}

void PackHeaderWriter::Text(std::string_view text) {
  for (const char c : text) U8(static_cast<uint8_t>(c));
}

void PackHeaderWriter::Number(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) U8(static_cast<uint8_t>(value >> (8 * i)));
}

std::vector<std::byte> PackHeaderWriter::Seal() && {
  const std::pair<size_t, uint64_t> fields[] = {{kHeaderBytesAt, out_.size()},
                                                {kChecksumAt, HeaderChecksum(out_)}};
  for (const auto& [at, value] : fields) {
    for (size_t i = 0; i < 8; ++i) out_[at + i] = static_cast<std::byte>(value >> (8 * i));
  }
  return std::move(out_);
}

uint64_t PackHeaderReader::Number(size_t bytes) {
  if (bytes_.size() < bytes || at_ > bytes_.size() - bytes) {
    overrun_ = true;
    return 0;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(bytes_[at_ + i]) << (8 * i);
  at_ += bytes;
  return value;
}

std::string PackHeaderReader::Text(size_t size) {
  std::string out;
  for (size_t i = 0; i < size && !overrun_; ++i) out.push_back(static_cast<char>(U8()));
  return out;
}

absl::Status CheckPackFields(std::initializer_list<PackFieldRange> ranges,
                             std::string_view source) {
  for (const PackFieldRange& range : ranges) {
    if (range.found < range.min || range.found > range.max) {
      return DataLossF("{}: header: {} {}, expected {} to {}", source, range.name, range.found,
                       range.min, range.max);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPackFingerprint(std::string_view fingerprint, std::string_view source) {
  const bool hex = std::all_of(fingerprint.begin(), fingerprint.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
  if (hex && fingerprint.size() == kPackFingerprintBytes) return absl::OkStatus();
  return DataLossF("{}: header: fingerprint '{}', expected 32 hex digits", source,
                   Printable(fingerprint));
}

absl::StatusOr<std::span<const std::byte>> CheckPackHeader(std::span<const std::byte> bytes,
                                                           uint64_t file_bytes,
                                                           const PackKind& kind,
                                                           std::string_view source) {
  RETURN_IF_ERROR(CheckPreamble(bytes, file_bytes, kind, source));
  PackHeaderReader preamble(bytes, kHeaderBytesAt);
  const uint64_t header_bytes = preamble.U64();
  const uint64_t checksum = preamble.U64();
  if (bytes.size() < header_bytes) {
    return DataLossF("{}: header size {}, only {} bytes are there", source, header_bytes,
                     bytes.size());
  }
  bytes = bytes.first(static_cast<size_t>(header_bytes));
  if (const uint64_t found = HeaderChecksum(bytes); found != checksum) {
    return DataLossF("{}: the header is damaged: checksum {:016x}, expected {:016x}", source, found,
                     checksum);
  }
  return bytes;
}

absl::StatusOr<std::vector<std::byte>> ReadPackHeader(const MappedFile& file,
                                                      const PackKind& kind) {
  const uint64_t file_bytes = file.bytes().size();
  std::vector<std::byte> bytes(
      static_cast<size_t>(std::min<uint64_t>(file_bytes, kPackPreambleBytes)));
  RETURN_IF_ERROR(file.Read(0, bytes));
  RETURN_IF_ERROR(CheckPreamble(bytes, file_bytes, kind, file.path()));
  bytes.resize(static_cast<size_t>(PackHeaderReader(bytes, kHeaderBytesAt).U64()));
  RETURN_IF_ERROR(file.Read(0, bytes));
  return bytes;
}

}  // namespace banyan
