// Pack files: the experts of one shard in a pool format, mapped as they are.
// Bytes: docs/formats/expert_pack.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/mapped_file.h"
#include "common/io/pack_header.h"
#include "common/quant/pool_format.h"

namespace banyan {

inline constexpr uint32_t kExpertPackVersion = 1;
inline constexpr std::string_view kExpertPackMagic = "BANYANPK";

// What a pack says of itself; fields as in ShardSpec and ShardGeometry (common/pool/shard.h).
struct ExpertPackHeader {
  PoolFormat format = PoolFormat::kInt8;
  bool split_by_experts = false;
  int32_t shard_index = 0;
  int32_t num_shards = 1;
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  int32_t hidden_size = 0;
  int32_t moe_intermediate_size = 0;
  int32_t first_expert = 0;
  int32_t num_shard_experts = 0;
  int32_t first_width = 0;
  int32_t num_shard_width = 0;
  std::string fingerprint;          // of the checkpoint, 32 hex digits
  uint64_t source_stamp = 0;        // Checkpoint::Stamp when it was packed
  std::vector<int32_t> moe_layers;  // ascending
  std::vector<uint64_t> checksums;  // XXH3-64 of each expert, [moe_layers][num_shard_experts]

  int64_t num_packed_experts() const {
    return static_cast<int64_t>(moe_layers.size()) * num_shard_experts;
  }
};

// Where things lie in a pack, from its header.
struct ExpertPackLayout {
  int64_t gate_bytes = 0;  // of an expert's gate_proj; up_proj is as large
  int64_t down_bytes = 0;
  int64_t expert_bytes = 0;  // of one expert: gate, up, down
  int64_t header_bytes = 0;
  int64_t payload_offset = 0;
  int64_t file_bytes = 0;

  int64_t ExpertOffset(int64_t idx) const { return payload_offset + idx * expert_bytes; }
};
// Sizes as in a valid header (no check); matrices are rounded up to 64 bytes.
ExpertPackLayout LayoutOf(const ExpertPackHeader& header);

// layout.header_bytes bytes.
std::vector<std::byte> EncodeExpertPackHeader(const ExpertPackHeader& header);

// As many bytes of a file as ParseExpertPackHeader needs, by pread. kDataLoss, kUnimplemented: no
// pack, by its first bytes.
absl::StatusOr<std::vector<std::byte>> ReadExpertPackHeader(const MappedFile& file);

// The header of a file of `file_bytes` that begins with `bytes`, which reach at least to the end of
// the header. kDataLoss: not a pack, cut, a checksum or field that contradicts the others;
// kUnimplemented: a version or format this program does not know. The message begins with `source`
// and says what was expected and what was found.
absl::StatusOr<ExpertPackHeader> ParseExpertPackHeader(std::span<const std::byte> bytes,
                                                       uint64_t file_bytes,
                                                       std::string_view source);

// A mapped pack. Immutable; thread-safe; movable.
class ExpertPack {
 public:
  // Maps the file and checks its header and size; no expert is touched. Errors of MappedFile::Open
  // and ParseExpertPackHeader.
  static absl::StatusOr<ExpertPack> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const ExpertPackHeader& header() const { return header_; }
  const ExpertPackLayout& layout() const { return layout_; }
  const MappedFile& file() const { return file_; }

  // `idx` in [0, header().num_packed_experts()): layer after layer.
  std::span<const std::byte> Expert(int64_t idx) const {
    return file_.bytes().subspan(static_cast<size_t>(layout_.ExpertOffset(idx)),
                                 static_cast<size_t>(layout_.expert_bytes));
  }
  // kDataLoss names the layer and the expert whose bytes do not have the checksum of the header.
  absl::Status VerifyExpert(int64_t idx) const;
  // The same for bytes that were copied elsewhere.
  absl::Status VerifyExpert(int64_t idx, std::span<const std::byte> bytes) const;
  std::vector<PackPiece> Pieces() const;  // one an expert
  // "layer 7 expert 31"
  std::string ExpertName(int64_t idx) const;

 private:
  ExpertPack(MappedFile file, ExpertPackHeader header);

  MappedFile file_;
  ExpertPackHeader header_;
  ExpertPackLayout layout_;
};

}  // namespace banyan
