#include "common/io/expert_pack.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/quant/packed_expert.h"

namespace banyan {
namespace {

// Offsets of docs/formats/expert_pack.md.
constexpr size_t kMoeLayersAt = 152;
constexpr PackKind kKind = {kExpertPackMagic, kExpertPackVersion, kMoeLayersAt};
constexpr int64_t kTableEntryBytes = 24;
// What a header may claim, as config.json may (model_config.cc): no size in bytes overflows.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxExperts = 65535;
constexpr int64_t kMaxSide = 1 << 18;
constexpr int64_t kMaxLayersTimesExperts = 1 << 20;

int64_t MoeLayersEnd(int64_t num_moe_layers) {
  return PackRoundUp(static_cast<int64_t>(kMoeLayersAt) + 4 * num_moe_layers, 8);
}

}  // namespace

ExpertPackLayout LayoutOf(const ExpertPackHeader& header) {
  ExpertPackLayout out;
  const PackedExpertLayout expert =
      PackedExpertLayoutOf(header.format, header.hidden_size, header.num_shard_width);
  out.gate_bytes = expert.gate_bytes();
  out.down_bytes = expert.down_bytes();
  out.expert_bytes = expert.bytes;
  out.header_bytes = MoeLayersEnd(static_cast<int64_t>(header.moe_layers.size())) +
                     kTableEntryBytes * header.num_packed_experts();
  out.payload_offset = PackRoundUp(out.header_bytes, kPackPayloadAlignment);
  out.file_bytes = out.ExpertOffset(header.num_packed_experts());
  return out;
}

std::vector<std::byte> EncodeExpertPackHeader(const ExpertPackHeader& header) {
  CHECK(header.fingerprint.size() == kPackFingerprintBytes);
  CHECK(static_cast<int64_t>(header.checksums.size()) == header.num_packed_experts());
  const ExpertPackLayout layout = LayoutOf(header);
  PackHeaderWriter out(kKind);
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
  return std::move(out).Seal();
}

absl::StatusOr<std::vector<std::byte>> ReadExpertPackHeader(const MappedFile& file) {
  return ReadPackHeader(file, kKind);
}

absl::StatusOr<ExpertPackHeader> ParseExpertPackHeader(std::span<const std::byte> bytes,
                                                       uint64_t file_bytes,
                                                       std::string_view source) {
  ASSIGN_OR_RETURN(bytes, CheckPackHeader(bytes, file_bytes, kKind, source));
  const uint64_t header_bytes = bytes.size();

  // What passed the checksum is still not trusted: it may have been written by anybody.
  PackHeaderReader reader(bytes);
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
  out.fingerprint = reader.Text(kPackFingerprintBytes);
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
  // Both may be anything up to 2^32 - 1 here.
  const int64_t product =
      std::min(num_layers, kMaxLayers + 1) * std::min(num_experts, kMaxExperts + 1);
  RETURN_IF_ERROR(
      CheckPackFields({{"split", split, 0, 1},
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
                       {"num_layers times num_experts", product, 1, kMaxLayersTimesExperts}},
                      source));
  RETURN_IF_ERROR(CheckPackFingerprint(out.fingerprint, source));
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
  PackHeaderReader layers(bytes, kMoeLayersAt);
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
  PackHeaderReader table(bytes, static_cast<size_t>(table_at));
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
  ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadExpertPackHeader(file));
  ASSIGN_OR_RETURN(ExpertPackHeader header,
                   ParseExpertPackHeader(bytes, file.bytes().size(), path));
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

std::vector<PackPiece> ExpertPack::Pieces() const {
  std::vector<PackPiece> pieces;
  pieces.reserve(header_.checksums.size());
  for (const uint64_t checksum : header_.checksums) {
    const auto idx = static_cast<int64_t>(pieces.size());
    pieces.push_back({static_cast<uint64_t>(layout_.ExpertOffset(idx)),
                      static_cast<uint64_t>(layout_.expert_bytes), checksum});
  }
  return pieces;
}

}  // namespace banyan
