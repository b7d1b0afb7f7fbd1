#include "common/io/trunk_pack.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

// Offsets of docs/formats/trunk_pack.md.
constexpr size_t kEntriesAt = 96;
constexpr PackKind kKind = {kTrunkPackMagic, kTrunkPackVersion, kEntriesAt};
constexpr int64_t kEntryFieldBytes = 48;
constexpr int64_t kArrayAlignment = 64;
constexpr int64_t kPieceBytes = 1 << 20;
// What a header may claim: no size in bytes overflows.
constexpr int64_t kMaxMatrices = 1 << 20;
constexpr int64_t kMaxNameBytes = 1024;
constexpr int64_t kMaxSide = int64_t{1} << 31;
constexpr int64_t kMaxElements = int64_t{1} << 40;

// As they stand in the file.
constexpr int64_t kFormatBF16 = 1;
constexpr int64_t kFormatInt8 = 2;
constexpr std::pair<DType, int64_t> kStoredTypes[] = {
    {DType::kBF16, 1}, {DType::kF32, 2}, {DType::kI8, 3}};

int64_t EntryBytes(const TrunkPackMatrix& matrix) {
  return kEntryFieldBytes + PackRoundUp(static_cast<int64_t>(matrix.name.size()), 8) +
         8 * matrix.num_checksums();
}

}  // namespace

int64_t TrunkPackMatrix::piece_rows() const {
  return std::max<int64_t>(1, kPieceBytes / row_bytes());
}

TrunkPackLayout LayoutOf(const TrunkPackHeader& header) {
  TrunkPackLayout out;
  out.header_bytes = kEntriesAt;
  for (const TrunkPackMatrix& matrix : header.matrices) out.header_bytes += EntryBytes(matrix);
  out.payload_offset = PackRoundUp(out.header_bytes, kPackPayloadAlignment);
  int64_t at = out.payload_offset;
  for (const TrunkPackMatrix& matrix : header.matrices) {
    TrunkPackLayout::Place& place = out.places.emplace_back();
    place.values = at;
    at += PackRoundUp(matrix.rows * matrix.row_bytes(), kArrayAlignment);
    if (!matrix.has_scales()) continue;
    place.scales = at;
    at += PackRoundUp(matrix.rows * matrix.row_scales() * 4, kArrayAlignment);
  }
  out.file_bytes = at;
  return out;
}

std::vector<std::byte> EncodeTrunkPackHeader(const TrunkPackHeader& header) {
  CHECK(header.fingerprint.size() == kPackFingerprintBytes);
  const TrunkPackLayout layout = LayoutOf(header);
  PackHeaderWriter out(kKind);
  out.U8(static_cast<uint8_t>(header.int8 ? kFormatInt8 : kFormatBF16));
  out.ZeroTo(out.size() + 3);
  out.U32(static_cast<int64_t>(header.matrices.size()));
  out.Text(header.fingerprint);
  out.U64(header.source_stamp);
  out.U64(static_cast<uint64_t>(layout.file_bytes));
  out.U64(static_cast<uint64_t>(layout.payload_offset));
  CHECK(out.size() == kEntriesAt);
  for (size_t i = 0; i < header.matrices.size(); ++i) {
    const TrunkPackMatrix& matrix = header.matrices[i];
    CHECK(static_cast<int64_t>(matrix.checksums.size()) == matrix.num_checksums());
    const auto* const dtype =
        std::find_if(std::begin(kStoredTypes), std::end(kStoredTypes),
                     [&](const auto& known) { return known.first == matrix.dtype; });
    CHECK(dtype != std::end(kStoredTypes));
    out.U32(dtype->second);
    out.U32(static_cast<int64_t>(matrix.name.size()));
    out.U64(static_cast<uint64_t>(matrix.rows));
    out.U64(static_cast<uint64_t>(matrix.cols));
    out.U64(static_cast<uint64_t>(layout.places[i].values));
    out.U64(static_cast<uint64_t>(layout.places[i].scales));
    out.U64(static_cast<uint64_t>(matrix.num_checksums()));
    out.Text(matrix.name);
    out.ZeroTo(static_cast<size_t>(PackRoundUp(static_cast<int64_t>(out.size()), 8)));
    for (const uint64_t checksum : matrix.checksums) out.U64(checksum);
  }
  CHECK(static_cast<int64_t>(out.size()) == layout.header_bytes);
  return std::move(out).Seal();
}

namespace {

// One entry, of which places are compared by the caller.
absl::StatusOr<std::pair<TrunkPackMatrix, TrunkPackLayout::Place>> ParseEntry(
    PackHeaderReader& reader, size_t header_bytes, std::string_view source) {
  TrunkPackMatrix out;
  const int64_t dtype = reader.U32();
  const int64_t name_bytes = reader.U32();
  const uint64_t rows = reader.U64();
  const uint64_t cols = reader.U64();
  TrunkPackLayout::Place place;
  place.values = static_cast<int64_t>(reader.U64());
  place.scales = static_cast<int64_t>(reader.U64());
  const uint64_t num_checksums = reader.U64();
  // What does not fit an int64_t is out of every range.
  const auto clamp = [](uint64_t value) {
    return static_cast<int64_t>(std::min<uint64_t>(value, uint64_t{1} << 62));
  };
  RETURN_IF_ERROR(CheckPackFields({{"dtype", dtype, 1, 3},
                                   {"bytes of a name", name_bytes, 1, kMaxNameBytes},
                                   {"rows", clamp(rows), 1, kMaxSide},
                                   {"cols", clamp(cols), 1, kMaxSide}},
                                  source));
  out.rows = static_cast<int64_t>(rows);
  out.cols = static_cast<int64_t>(cols);
  if (out.rows > kMaxElements / out.cols) {
    return DataLossF("{}: header: a matrix of {} x {}, expected at most {} elements", source, rows,
                     cols, kMaxElements);
  }
  out.dtype = kStoredTypes[dtype - 1].first;
  const size_t padded = static_cast<size_t>(PackRoundUp(name_bytes, 8));
  out.name = reader.Text(static_cast<size_t>(name_bytes));
  const std::string zeros = reader.Text(padded - static_cast<size_t>(name_bytes));
  if (num_checksums != static_cast<uint64_t>(out.num_checksums())) {
    return DataLossF("{}: header: {}: {} checksums, expected {}", source, Printable(out.name),
                     num_checksums, out.num_checksums());
  }
  if (reader.overrun() || num_checksums > (header_bytes - reader.at()) / 8 ||
      zeros.find_first_not_of('\0') != std::string::npos) {
    return DataLossF("{}: header: {}: its entry does not fit the header of {} bytes", source,
                     Printable(out.name), header_bytes);
  }
  for (uint64_t i = 0; i < num_checksums; ++i) out.checksums.push_back(reader.U64());
  return std::make_pair(std::move(out), place);
}

}  // namespace

absl::StatusOr<TrunkPackHeader> ParseTrunkPackHeader(std::span<const std::byte> bytes,
                                                     uint64_t file_bytes, std::string_view source) {
  ASSIGN_OR_RETURN(bytes, CheckPackHeader(bytes, file_bytes, kKind, source));
  // What passed the checksum is still not trusted: it may have been written by anybody.
  PackHeaderReader reader(bytes);
  TrunkPackHeader out;
  const int64_t format = reader.U8();
  int64_t zeros = 0;
  for (int i = 0; i < 3; ++i) zeros |= reader.U8();
  const int64_t num_matrices = reader.U32();
  out.fingerprint = reader.Text(kPackFingerprintBytes);
  out.source_stamp = reader.U64();
  const uint64_t told_file_bytes = reader.U64();
  const uint64_t payload_offset = reader.U64();
  if (format != kFormatBF16 && format != kFormatInt8) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: header: trunk format {}, this program knows 1 and 2", source, format);
  }
  if (zeros != 0) return DataLossF("{}: header: reserved bytes are not 0", source);
  RETURN_IF_ERROR(CheckPackFields({{"matrices", num_matrices, 1, kMaxMatrices}}, source));
  RETURN_IF_ERROR(CheckPackFingerprint(out.fingerprint, source));
  out.int8 = format == kFormatInt8;
  std::vector<TrunkPackLayout::Place> places;
  for (int64_t i = 0; i < num_matrices; ++i) {
    ASSIGN_OR_RETURN(auto entry, ParseEntry(reader, bytes.size(), source));
    out.matrices.push_back(std::move(entry.first));
    places.push_back(entry.second);
  }
  const TrunkPackLayout layout = LayoutOf(out);
  const std::pair<const char*, std::pair<uint64_t, int64_t>> sizes[] = {
      {"size", {bytes.size(), layout.header_bytes}},
      {"file size", {told_file_bytes, layout.file_bytes}},
      {"payload offset", {payload_offset, layout.payload_offset}}};
  for (const auto& [name, values] : sizes) {
    if (values.first != static_cast<uint64_t>(values.second)) {
      return DataLossF("{}: header: {} {}, expected {}", source, name, values.first, values.second);
    }
  }
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i].values != layout.places[i].values ||
        places[i].scales != layout.places[i].scales) {
      return DataLossF("{}: header: {}: at {} and {}, expected {} and {}", source,
                       Printable(out.matrices[i].name), places[i].values, places[i].scales,
                       layout.places[i].values, layout.places[i].scales);
    }
  }
  if (file_bytes != static_cast<uint64_t>(layout.file_bytes)) {
    return DataLossF("{}: the file has {} bytes, expected {}{}", source, file_bytes,
                     layout.file_bytes,
                     file_bytes < static_cast<uint64_t>(layout.file_bytes) ? "; it was cut" : "");
  }
  return out;
}

TrunkPack::TrunkPack(MappedFile file, TrunkPackHeader header)
    : file_(std::move(file)), header_(std::move(header)), layout_(LayoutOf(header_)) {
  const std::byte* const data = file_.bytes().data();
  for (size_t i = 0; i < header_.matrices.size(); ++i) {
    const TrunkPackMatrix& matrix = header_.matrices[i];
    const TrunkPackLayout::Place& place = layout_.places[i];
    Matrix& out = matrices_[matrix.name];
    out.values = {matrix.dtype, Shape{matrix.rows, matrix.cols}, data + place.values};
    if (matrix.has_scales()) out.scales = reinterpret_cast<const float*>(data + place.scales);
  }
}

absl::StatusOr<TrunkPack> TrunkPack::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadPackHeader(file, kKind));
  ASSIGN_OR_RETURN(TrunkPackHeader header, ParseTrunkPackHeader(bytes, file.bytes().size(), path));
  return TrunkPack(std::move(file), std::move(header));
}

const TrunkPack::Matrix* TrunkPack::Find(std::string_view name) const {
  const auto it = matrices_.find(name);
  return it == matrices_.end() ? nullptr : &it->second;
}

std::vector<std::span<const std::byte>> TrunkPack::Ranges() const {
  const auto payload = static_cast<size_t>(layout_.payload_offset);
  return {file_.bytes().subspan(payload)};
}

std::vector<PackPiece> TrunkPack::Pieces() const {
  std::vector<PackPiece> out;
  for (size_t i = 0; i < header_.matrices.size(); ++i) {
    const TrunkPackMatrix& matrix = header_.matrices[i];
    const std::pair<int64_t, int64_t> arrays[] = {
        {layout_.places[i].values, matrix.row_bytes()},
        {layout_.places[i].scales, matrix.row_scales() * 4}};
    for (int64_t k = 0; k < matrix.num_checksums(); ++k) {
      const auto& [at, row_bytes] = arrays[k / matrix.num_pieces()];
      const int64_t first = k % matrix.num_pieces() * matrix.piece_rows();
      const int64_t rows = std::min(matrix.piece_rows(), matrix.rows - first);
      out.push_back({static_cast<uint64_t>(at + first * row_bytes),
                     static_cast<uint64_t>(rows * row_bytes),
                     matrix.checksums[static_cast<size_t>(k)]});
    }
  }
  return out;
}

std::string TrunkPack::PieceName(int64_t idx) const {
  for (const TrunkPackMatrix& matrix : header_.matrices) {
    if (idx >= matrix.num_checksums()) {
      idx -= matrix.num_checksums();
      continue;
    }
    const int64_t first = idx % matrix.num_pieces() * matrix.piece_rows();
    return fmt::format("{}{} rows {} to {}", matrix.name,
                       idx >= matrix.num_pieces() ? " scales," : "", first,
                       std::min(first + matrix.piece_rows(), matrix.rows) - 1);
  }
  return "";
}

}  // namespace banyan
