// Trunk packs: matrices of a trunk that are not used as the checkpoint has them, decoded once and
// mapped as they are. Bytes: docs/formats/trunk_pack.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/mapped_file.h"
#include "common/io/pack_header.h"
#include "common/tensor/dtype.h"
#include "common/tensor/tensor_view.h"

namespace banyan {

inline constexpr std::string_view kTrunkPackMagic = "BANYANTP";
inline constexpr uint32_t kTrunkPackVersion = 1;
inline constexpr int64_t kTrunkPackGroupColumns = 64;  // of a row of codes that share a scale

struct TrunkPackMatrix {
  std::string name;            // of the weight
  DType dtype = DType::kBF16;  // kBF16, kF32, or kI8: codes with an f32 scale a group
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint64_t> checksums;  // of each piece: those of the values, then of the scales

  // A piece is so many rows, about a mebibyte; the last one may be shorter.
  int64_t piece_rows() const;
  int64_t num_pieces() const { return (rows + piece_rows() - 1) / piece_rows(); }
  bool has_scales() const { return dtype == DType::kI8; }
  int64_t num_checksums() const { return num_pieces() * (has_scales() ? 2 : 1); }
  int64_t row_bytes() const { return cols * static_cast<int64_t>(DTypeSizeBytes(dtype)); }
  int64_t row_scales() const {
    return has_scales() ? (cols + kTrunkPackGroupColumns - 1) / kTrunkPackGroupColumns : 0;
  }
};

struct TrunkPackHeader {
  bool int8 = false;                      // --trunk_format int8
  std::string fingerprint;                // of the checkpoint, 32 hex digits
  uint64_t source_stamp = 0;              // Checkpoint::Stamp when it was packed
  std::vector<TrunkPackMatrix> matrices;  // in order of use
};

// Where things lie, from a valid header.
struct TrunkPackLayout {
  struct Place {
    int64_t values = 0;
    int64_t scales = 0;  // 0: none
  };
  std::vector<Place> places;  // of the header's matrices
  int64_t header_bytes = 0;
  int64_t payload_offset = 0;
  int64_t file_bytes = 0;
};
TrunkPackLayout LayoutOf(const TrunkPackHeader& header);

// layout.header_bytes bytes; every matrix has its checksums.
std::vector<std::byte> EncodeTrunkPackHeader(const TrunkPackHeader& header);

// As ParseExpertPackHeader.
absl::StatusOr<TrunkPackHeader> ParseTrunkPackHeader(std::span<const std::byte> bytes,
                                                     uint64_t file_bytes, std::string_view source);

// A mapped pack. Immutable; thread-safe; movable.
class TrunkPack {
 public:
  // Maps the file and checks its header and size; no matrix is touched. Errors of MappedFile::Open
  // and ParseTrunkPackHeader.
  static absl::StatusOr<TrunkPack> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const TrunkPackHeader& header() const { return header_; }
  const TrunkPackLayout& layout() const { return layout_; }
  const MappedFile& file() const { return file_; }

  struct Matrix {
    TensorView values;              // [rows, cols]; kI8: codes
    const float* scales = nullptr;  // kI8: [rows, ceil(cols / 64)]
  };
  // nullptr: the pack has no such matrix. Lives as long as the pack, also when that is moved.
  const Matrix* Find(std::string_view name) const;
  std::vector<std::span<const std::byte>> Ranges() const;  // of all matrices

  std::vector<PackPiece> Pieces() const;
  // "model.layers.0.mlp.gate.weight rows 512 to 1023"
  std::string PieceName(int64_t idx) const;

 private:
  TrunkPack(MappedFile file, TrunkPackHeader header);

  MappedFile file_;
  TrunkPackHeader header_;
  TrunkPackLayout layout_;
  std::map<std::string, Matrix, std::less<>> matrices_;
};

}  // namespace banyan
