#include "common/io/expert_pack.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr char kMagic[] = "BANYANPK";
constexpr size_t kMagicBytes = 8;
constexpr size_t kFingerprintBytes = 32;
// Offsets of docs/formats/expert_pack.md.
constexpr size_t kVersionAt = 8;
constexpr size_t kHeaderBytesAt = 16;
constexpr size_t kChecksumAt = 24;
constexpr size_t kFieldsAt = kPackPreambleBytes;
constexpr size_t kMoeLayersAt = 152;
constexpr int64_t kTableEntryBytes = 24;
constexpr int64_t kMatrixAlignment = 64;
// What a header may claim, as config.json may (model_config.cc): no size in bytes overflows.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxExperts = 65535;
constexpr int64_t kMaxSide = 1 << 18;
constexpr int64_t kMaxLayersTimesExperts = 1 << 20;

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

class Writer {
 public:
  void U8(uint8_t value) { out_.push_back(std::byte{value}); }
  void U32(int64_t value) { Number(static_cast<uint64_t>(value), 4); }
  void U64(uint64_t value) { Number(value, 8); }
  void Text(std::string_view text) {
    for (const char c : text) U8(static_cast<uint8_t>(c));
  }
  void ZeroTo(size_t size) { out_.resize(size); }
  size_t size() const { return out_.size(); }
  std::vector<std::byte>& bytes() { return out_; }

 private:
  void Number(uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) U8(static_cast<uint8_t>(value >> (8 * i)));
  }
  std::vector<std::byte> out_;
};

// Reads within the bounds that the caller has checked.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, size_t at) : bytes_(bytes), at_(at) {}
  uint8_t U8() { return static_cast<uint8_t>(Number(1)); }
  int64_t U32() { return static_cast<int64_t>(Number(4)); }
  uint64_t U64() { return Number(8); }
  std::string Text(size_t size) {
    std::string out;
    for (size_t i = 0; i < size; ++i) out.push_back(static_cast<char>(U8()));
    return out;
  }

 private:
  uint64_t Number(size_t bytes) {
    DCHECK(at_ + bytes <= bytes_.size());
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) {
      value |= static_cast<uint64_t>(bytes_[at_ + i]) << (8 * i);
    }
    at_ += bytes;
    return value;
  }
  std::span<const std::byte> bytes_;
  size_t at_;
};

uint64_t HeaderChecksum(std::span<const std::byte> header) {
  return XXH3_64bits(header.data() + kFieldsAt, header.size() - kFieldsAt);
}

int64_t MoeLayersEnd(int64_t num_moe_layers) {
  return RoundUp(static_cast<int64_t>(kMoeLayersAt) + 4 * num_moe_layers, 8);
}

struct Range {
  const char* name;
  int64_t found;
  int64_t min;
  int64_t max;
};

absl::Status CheckRanges(std::initializer_list<Range> ranges, std::string_view source) {
  for (const Range& range : ranges) {
    if (range.found < range.min || range.found > range.max) {
      return DataLossF("{}: header: {} {}, expected {} to {}", source, range.name, range.found,
                       range.min, range.max);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPreamble(std::span<const std::byte> bytes, uint64_t file_bytes,
                           std::string_view source) {
  if (file_bytes < static_cast<uint64_t>(kPackPreambleBytes) ||
      bytes.size() < static_cast<size_t>(kPackPreambleBytes)) {
    return DataLossF("{}: {} bytes, too short for a pack's header of at least {}", source,
                     file_bytes, kPackPreambleBytes);
  }
  if (std::memcmp(bytes.data(), kMagic, kMagicBytes) != 0) {
    return DataLossF("{}: not a pack: begins with '{}', expected '{}'", source,
                     Printable({reinterpret_cast<const char*>(bytes.data()), kMagicBytes}), kMagic);
  }
  Reader reader(bytes, kVersionAt);
  const int64_t version = reader.U32();
  if (version != kExpertPackVersion) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: pack version {}, this program reads version {}", source, version,
                   kExpertPackVersion);
  }
  if (const int64_t reserved = reader.U32(); reserved != 0) {
    return DataLossF("{}: header: bytes 12 to 15 hold {}, expected 0", source, reserved);
  }
  const uint64_t header_bytes = reader.U64();
  if (header_bytes < kMoeLayersAt || header_bytes > static_cast<uint64_t>(kMaxPackHeaderBytes)) {
    return DataLossF("{}: header size {}, expected {} to {}", source, header_bytes, kMoeLayersAt,
                     kMaxPackHeaderBytes);
  }
  if (header_bytes > file_bytes) {
    return DataLossF("{}: header size {}, but the file has {} bytes; it was cut", source,
                     header_bytes, file_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

ExpertPackLayout LayoutOf(const ExpertPackHeader& header) {
  ExpertPackLayout out;
  const int64_t width = header.num_shard_width;
  const int64_t hidden = header.hidden_size;
  out.gate_bytes = RoundUp(PackedMatrixBytes(header.format, width, hidden), kMatrixAlignment);
  out.down_bytes = RoundUp(PackedMatrixBytes(header.format, hidden, width), kMatrixAlignment);
  out.expert_bytes = 2 * out.gate_bytes + out.down_bytes;
  out.header_bytes = MoeLayersEnd(static_cast<int64_t>(header.moe_layers.size())) +
                     kTableEntryBytes * header.num_packed_experts();
  out.payload_offset = RoundUp(out.header_bytes, kPackPayloadAlignment);
  out.file_bytes = out.ExpertOffset(header.num_packed_experts());
  return out;
}

uint64_t PackChecksum(std::span<const std::byte> expert) {
  return XXH3_64bits(expert.data(), expert.size());
}

std::vector<std::byte> EncodeExpertPackHeader(const ExpertPackHeader& header) {
  CHECK(header.fingerprint.size() == kFingerprintBytes);
  CHECK(static_cast<int64_t>(header.checksums.size()) == header.num_packed_experts());
  const ExpertPackLayout layout = LayoutOf(header);
  Writer out;
  out.Text(kMagic);
  out.U32(kExpertPackVersion);
  out.U32(0);
  out.U64(static_cast<uint64_t>(layout.header_bytes));
  out.U64(0);  // the checksum, below
  out.U8(static_cast<uint8_t>(header.format));
  out.U8(header.split_by_experts ? 1 : 0);
  out.U8(0);
  out.U8(0);
  for (const int32_t field :
       {header.shard_index, header.num_shards, header.num_layers, header.num_experts,
        header.hidden_size, header.moe_intermediate_size, header.first_expert,
        header.num_shard_experts, header.first_width, header.num_shard_width}) {
    out.U32(field);
  }
  out.U32(static_cast<int64_t>(header.moe_layers.size()));
  out.Text(header.fingerprint);
  out.U64(header.source_stamp);
  out.U64(static_cast<uint64_t>(layout.file_bytes));
  out.U64(static_cast<uint64_t>(layout.payload_offset));
  out.U64(static_cast<uint64_t>(layout.expert_bytes));
  out.U64(0);
  CHECK(out.size() == kMoeLayersAt);
  for (const int32_t layer : header.moe_layers) out.U32(layer);
  out.ZeroTo(static_cast<size_t>(MoeLayersEnd(static_cast<int64_t>(header.moe_layers.size()))));
  for (int64_t i = 0; i < header.num_packed_experts(); ++i) {
    out.U64(static_cast<uint64_t>(layout.ExpertOffset(i)));
    out.U64(static_cast<uint64_t>(layout.expert_bytes));
    out.U64(header.checksums[static_cast<size_t>(i)]);
  }
  CHECK(static_cast<int64_t>(out.size()) == layout.header_bytes);
  const uint64_t checksum = HeaderChecksum(out.bytes());
  for (size_t i = 0; i < 8; ++i) {
    out.bytes()[kChecksumAt + i] = static_cast<std::byte>(checksum >> (8 * i));
  }
  return std::move(out.bytes());
}

absl::StatusOr<ExpertPackHeader> ParseExpertPackHeader(std::span<const std::byte> bytes,
                                                       uint64_t file_bytes,
                                                       std::string_view source) {
  RETURN_IF_ERROR(CheckPreamble(bytes, file_bytes, source));
  Reader preamble(bytes, kHeaderBytesAt);
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

  // What passed the checksum is still not trusted: it may have been written by anybody.
  Reader reader(bytes, kFieldsAt);
  ExpertPackHeader out;
  const int64_t format = reader.U8();
  const int64_t split = reader.U8();
  const int64_t zero_a = reader.U8();
  const int64_t zero_b = reader.U8();
  const int64_t shard_index = reader.U32();
  const int64_t num_shards = reader.U32();
  const int64_t num_layers = reader.U32();
  const int64_t num_experts = reader.U32();
  const int64_t hidden_size = reader.U32();
  const int64_t width = reader.U32();
  const int64_t first_expert = reader.U32();
  const int64_t num_shard_experts = reader.U32();
  const int64_t first_width = reader.U32();
  const int64_t num_shard_width = reader.U32();
  const int64_t num_moe_layers = reader.U32();
  out.fingerprint = reader.Text(kFingerprintBytes);
  out.source_stamp = reader.U64();
  const uint64_t told_file_bytes = reader.U64();
  const uint64_t payload_offset = reader.U64();
  const uint64_t expert_bytes = reader.U64();
  const uint64_t zero_c = reader.U64();

  if (format < static_cast<int64_t>(PoolFormat::kBF16) ||
      format > static_cast<int64_t>(PoolFormat::kInt4)) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: header: pool format {}, this program knows 1 to 4", source, format);
  }
  if (zero_a != 0 || zero_b != 0 || zero_c != 0) {
    return DataLossF("{}: header: reserved bytes are not 0", source);
  }
  RETURN_IF_ERROR(CheckRanges(
      {{"split", split, 0, 1},
       {"num_shards", num_shards, 1, kMaxExperts},
       {"shard_index", shard_index, 0, num_shards - 1},
       {"num_layers", num_layers, 1, kMaxLayers},
       {"num_experts", num_experts, 1, kMaxExperts},
       {"hidden_size", hidden_size, 1, kMaxSide},
       {"moe_intermediate_size", width, 1, kMaxSide},
       {"first_expert", first_expert, 0, num_experts - 1},
       {"num_shard_experts", num_shard_experts, 1, num_experts - first_expert},
       {"first_width", first_width, 0, width - 1},
       {"num_shard_width", num_shard_width, 1, width - first_width},
       {"num_moe_layers", num_moe_layers, 1, num_layers},
       {"num_layers times num_experts", num_layers * num_experts, 1, kMaxLayersTimesExperts}},
      source));
  for (const char c : out.fingerprint) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) {
      return DataLossF("{}: header: fingerprint '{}', expected 32 hex digits", source,
                       Printable(out.fingerprint));
    }
  }
  out.format = static_cast<PoolFormat>(format);
  out.split_by_experts = split == 1;
  out.shard_index = static_cast<int32_t>(shard_index);
  out.num_shards = static_cast<int32_t>(num_shards);
  out.num_layers = static_cast<int32_t>(num_layers);
  out.num_experts = static_cast<int32_t>(num_experts);
  out.hidden_size = static_cast<int32_t>(hidden_size);
  out.moe_intermediate_size = static_cast<int32_t>(width);
  out.first_expert = static_cast<int32_t>(first_expert);
  out.num_shard_experts = static_cast<int32_t>(num_shard_experts);
  out.first_width = static_cast<int32_t>(first_width);
  out.num_shard_width = static_cast<int32_t>(num_shard_width);

  const int64_t table_at = MoeLayersEnd(num_moe_layers);
  const int64_t expected_header = table_at + kTableEntryBytes * num_moe_layers * num_shard_experts;
  if (header_bytes != static_cast<uint64_t>(expected_header)) {
    return DataLossF("{}: header size {}, expected {} for {} layers of {} experts", source,
                     header_bytes, expected_header, num_moe_layers, num_shard_experts);
  }
  Reader layers(bytes, kMoeLayersAt);
  for (int64_t i = 0; i < num_moe_layers; ++i) {
    const int64_t layer = layers.U32();
    const int64_t min = out.moe_layers.empty() ? 0 : int64_t{out.moe_layers.back()} + 1;
    if (layer < min || layer >= num_layers) {
      return DataLossF("{}: header: moe layer {} of place {}, expected {} to {}", source, layer, i,
                       min, num_layers - 1);
    }
    out.moe_layers.push_back(static_cast<int32_t>(layer));
  }
  const ExpertPackLayout layout = LayoutOf(out);
  const std::pair<const char*, std::pair<uint64_t, int64_t>> sizes[] = {
      {"file size", {told_file_bytes, layout.file_bytes}},
      {"payload offset", {payload_offset, layout.payload_offset}},
      {"bytes of an expert", {expert_bytes, layout.expert_bytes}}};
  for (const auto& [name, values] : sizes) {
    if (values.first != static_cast<uint64_t>(values.second)) {
      return DataLossF("{}: header: {} {}, expected {}", source, name, values.first, values.second);
    }
  }
  if (file_bytes != static_cast<uint64_t>(layout.file_bytes)) {
    return DataLossF("{}: the file has {} bytes, expected {}{}", source, file_bytes,
                     layout.file_bytes,
                     file_bytes < static_cast<uint64_t>(layout.file_bytes) ? "; it was cut" : "");
  }
  Reader table(bytes, static_cast<size_t>(table_at));
  out.checksums.reserve(static_cast<size_t>(out.num_packed_experts()));
  for (int64_t i = 0; i < out.num_packed_experts(); ++i) {
    const uint64_t offset = table.U64();
    const uint64_t size = table.U64();
    if (offset != static_cast<uint64_t>(layout.ExpertOffset(i)) ||
        size != static_cast<uint64_t>(layout.expert_bytes)) {
      return DataLossF("{}: table entry {}: {} bytes at {}, expected {} at {}", source, i, size,
                       offset, layout.expert_bytes, layout.ExpertOffset(i));
    }
    out.checksums.push_back(table.U64());
  }
  return out;
}

ExpertPack::ExpertPack(MappedFile file, ExpertPackHeader header)
    : file_(std::move(file)), header_(std::move(header)), layout_(LayoutOf(header_)) {}

absl::StatusOr<ExpertPack> ExpertPack::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  const uint64_t file_bytes = file.bytes().size();
  std::vector<std::byte> bytes(
      static_cast<size_t>(std::min<uint64_t>(file_bytes, kPackPreambleBytes)));
  RETURN_IF_ERROR(file.Read(0, bytes));
  RETURN_IF_ERROR(CheckPreamble(bytes, file_bytes, path));
  bytes.resize(static_cast<size_t>(Reader(bytes, kHeaderBytesAt).U64()));
  RETURN_IF_ERROR(file.Read(0, bytes));
  ASSIGN_OR_RETURN(ExpertPackHeader header, ParseExpertPackHeader(bytes, file_bytes, path));
  return ExpertPack(std::move(file), std::move(header));
}

std::string ExpertPack::ExpertName(int64_t idx) const {
  return fmt::format("layer {} expert {}",
                     header_.moe_layers[static_cast<size_t>(idx / header_.num_shard_experts)],
                     header_.first_expert + idx % header_.num_shard_experts);
}

absl::Status ExpertPack::VerifyExpert(int64_t idx) const { return VerifyExpert(idx, Expert(idx)); }

absl::Status ExpertPack::VerifyExpert(int64_t idx, std::span<const std::byte> bytes) const {
  const uint64_t found = PackChecksum(bytes);
  const uint64_t expected = header_.checksums[static_cast<size_t>(idx)];
  if (found == expected) return absl::OkStatus();
  return DataLossF("{}: {} is damaged: checksum {:016x}, expected {:016x}", path(), ExpertName(idx),
                   found, expected);
}

}  // namespace banyan
