#include "common/config/stored_matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/quant/bf16.h"
#include "common/quant/dequantize.h"
#include "common/quant/f16.h"
#include "common/quant/nf4.h"

namespace banyan {
namespace {

using Entry = Checkpoint::Entry;

constexpr int64_t kF8Block = 128;
// LLM.int8 and FP8 name no dtype of their values: they are those of a bf16 model, as the references
// have it (docs/adr/own-precision.md).
constexpr DType kIntegerValues = DType::kBF16;
constexpr DType kF8Values = DType::kBF16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

absl::Status Unsupported(std::string_view what) {
  return StatusF(absl::StatusCode::kUnimplemented, "{}, which is not supported (supported: {})",
                 what, kSupportedWeights);
}

// Finds what belongs to one weight. Entries are in name order, so companions that begin with the
// weight's name follow it.
class Finder {
 public:
  Finder(const Checkpoint& checkpoint, std::string_view name, const Entry* weight)
      : checkpoint_(checkpoint), name_(name), module_(name) {
    constexpr std::string_view kSuffix = ".weight";
    if (module_.ends_with(kSuffix)) module_.remove_suffix(kSuffix.size());
    if (weight == nullptr) return;
    const std::span<const Entry> all = checkpoint.entries();
    const auto first = static_cast<size_t>(weight - all.data()) + 1;
    size_t last = first;
    while (last < all.size() && all[last].name.starts_with(name)) ++last;
    followers_ = all.subspan(first, last - first);
  }

  // The tensor of the weight's name and a suffix.
  const Entry* Of(std::string_view suffix) const {
    for (const Entry& entry : followers_) {
      if (std::string_view(entry.name).substr(name_.size()) == suffix) return &entry;
    }
    return nullptr;
  }
  // The same for the name without ".weight".
  const Entry* OfModule(std::string_view suffix) const {
    return checkpoint_.Find(fmt::format("{}{}", module_, suffix));
  }

  absl::Status Missing(std::string_view companion, const Entry& weight) const {
    return StatusF(absl::StatusCode::kNotFound, "{}, which {} {} {} needs ({})", companion, name_,
                   DTypeName(weight.view.dtype), weight.view.shape.ToString(),
                   checkpoint_.FileOf(weight));
  }

  // A companion that must be there.
  absl::StatusOr<const Entry*> Need(std::string_view suffix, const Entry& weight) const {
    const Entry* const found = Of(suffix);
    if (found == nullptr) return Missing(fmt::format("{}{}", name_, suffix), weight);
    return found;
  }

  absl::Status Contradiction(const Entry& entry, std::string_view expected) const {
    return FailedPreconditionF("{}: {} {}, expected {} ({})", Printable(entry.name),
                               DTypeName(entry.view.dtype), entry.view.shape.ToString(), expected,
                               checkpoint_.FileOf(entry));
  }

  absl::Status WrongShape(const Entry& entry, const Shape& expected) const {
    return FailedPreconditionF("{}: shape {}, expected {} ({})", name_, entry.view.shape.ToString(),
                               expected.ToString(), checkpoint_.FileOf(entry));
  }

  // Formats that hold a weight under other names.
  absl::Status NoWeight(const Shape& shape) const {
    const auto in_format = [this](const Entry& entry, std::string_view format) {
      return Unsupported(fmt::format("{} {} {} is in the format {} ({})", Printable(entry.name),
                                     DTypeName(entry.view.dtype), entry.view.shape.ToString(),
                                     format, checkpoint_.FileOf(entry)));
    };
    if (const Entry* const entry = OfModule(".qweight")) {
      return in_format(*entry, PackedBy(*entry, shape));
    }
    if (const Entry* const entry = OfModule(".weight_packed")) {
      return in_format(*entry, "compressed-tensors pack-quantized");
    }
    return StatusF(absl::StatusCode::kNotFound, "{} {}", name_, shape.ToString());
  }

  // Both hold a matrix transposed, several codes in an element: GPTQ along the inputs, AWQ along
  // the outputs.
  std::string_view PackedBy(const Entry& qweight, const Shape& shape) const {
    const Shape& packed = qweight.view.shape;
    if (OfModule(".g_idx") != nullptr) return "GPTQ";
    if (shape.rank() == 2 && packed.rank() == 2) {
      const int64_t outputs = shape.dim(0);
      const int64_t inputs = shape.dim(1);
      if (packed.dim(1) == outputs && packed.dim(0) < inputs) return "GPTQ";
      if (packed.dim(0) == inputs && packed.dim(1) < outputs) return "AWQ";
    }
    return "GPTQ or AWQ";
  }

  absl::Status UnsupportedDType(const Entry& entry, bool matrix) const {
    const DType dtype = entry.view.dtype;
    if (matrix && dtype == DType::kU32 && OfModule(".scales") != nullptr) {
      return Unsupported(
          fmt::format("{} is in the format MLX ({})", name_, checkpoint_.FileOf(entry)));
    }
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: dtype {}, expected BF16, F16 or F32{} ({})", name_, DTypeName(dtype),
                   matrix ? ", or a quantised matrix (U8, I8, F8_E4M3) with its companions" : "",
                   checkpoint_.FileOf(entry));
  }

  absl::Status FindBnb4(const Entry& weight, StoredMatrix* out) const {
    const int64_t weights = out->rows * out->cols;
    if (static_cast<int64_t>(weight.view.size_bytes()) != CeilDiv(weights, 2)) {
      return FailedPreconditionF("{}: {} {} has {} bytes, expected {} for [{}, {}] in 4 bits ({})",
                                 name_, DTypeName(weight.view.dtype), weight.view.shape.ToString(),
                                 weight.view.size_bytes(), CeilDiv(weights, 2), out->rows,
                                 out->cols, checkpoint_.FileOf(weight));
    }
    ASSIGN_OR_RETURN(out->scale, Need(".absmax", weight));
    ASSIGN_OR_RETURN(out->quant_map, Need(".quant_map", weight));
    const TensorView& map = out->quant_map->view;
    if (map.dtype != DType::kF32 || map.shape != Shape{16}) {
      return Contradiction(*out->quant_map, "F32 [16]");
    }
    const TensorView& absmax = out->scale->view;
    if (absmax.shape.rank() != 1) return Contradiction(*out->scale, "one dimension");
    if (absmax.dtype == DType::kF32) return absl::OkStatus();
    if (absmax.dtype != DType::kU8) {
      return Contradiction(*out->scale, "F32, or U8 with nested_absmax");
    }
    ASSIGN_OR_RETURN(out->nested_absmax, Need(".nested_absmax", weight));
    ASSIGN_OR_RETURN(out->nested_quant_map, Need(".nested_quant_map", weight));
    const TensorView& nested = out->nested_absmax->view;
    if (nested.dtype != DType::kF32 || nested.shape.rank() != 1) {
      return Contradiction(*out->nested_absmax, "F32 of one dimension");
    }
    const TensorView& nested_map = out->nested_quant_map->view;
    if (nested_map.dtype != DType::kF32 || nested_map.shape != Shape{256}) {
      return Contradiction(*out->nested_quant_map, "F32 [256]");
    }
    return absl::OkStatus();
  }

  absl::Status FindInt8(const Entry& weight, StoredMatrix* out) const {
    if (const Entry* const other = Of("_scale")) {
      return Unsupported(
          fmt::format("{} with {} is in the format compressed-tensors int-quantized ({})", name_,
                      Printable(other->name), checkpoint_.FileOf(weight)));
    }
    out->scale = OfModule(".SCB");
    if (out->scale == nullptr) return Missing(fmt::format("{}.SCB", module_), weight);
    const TensorView& scb = out->scale->view;
    if (scb.dtype != DType::kF32 || scb.shape != Shape{out->rows}) {
      return Contradiction(*out->scale, fmt::format("F32 [{}]", out->rows));
    }
    out->weight_format = Of("_format");
    if (out->weight_format != nullptr) {
      const TensorView& format = out->weight_format->view;
      if (format.dtype != DType::kU8 || format.shape.num_elements() != 1) {
        return Contradiction(*out->weight_format, "U8 []");
      }
    }
    return absl::OkStatus();
  }

  absl::Status FindFP8(const Entry& weight, StoredMatrix* out) const {
    out->scale = Of("_scale_inv");
    if (out->scale == nullptr) out->scale = Of("_scale");
    if (out->scale == nullptr) return Missing(fmt::format("{}_scale_inv", name_), weight);
    const TensorView& scale = out->scale->view;
    const Shape blocks{CeilDiv(out->rows, kF8Block), CeilDiv(out->cols, kF8Block)};
    const bool fits = scale.shape == blocks || scale.shape == Shape{out->rows, 1} ||
                      scale.shape == Shape{out->rows};
    const bool plain = scale.dtype == DType::kBF16 || scale.dtype == DType::kF32;
    if (fits && plain) return absl::OkStatus();
    return Contradiction(*out->scale,
                         fmt::format("BF16 or F32 {} (blocks of {} x {}) or [{}, 1] (rows)",
                                     blocks.ToString(), kF8Block, kF8Block, out->rows));
  }

 private:
  const Checkpoint& checkpoint_;
  const std::string_view name_;
  std::string_view module_;  // the name without ".weight"
  std::span<const Entry> followers_;
};

absl::StatusOr<std::string> ReadBytes(const Checkpoint& checkpoint, const Entry& entry) {
  std::string out(entry.view.size_bytes(), '\0');
  RETURN_IF_ERROR(checkpoint.Read({entry.view.data, out.size()},
                                  std::as_writable_bytes(std::span(out.data(), out.size()))));
  return out;
}

// F32 or BF16 as f32, all finite.
absl::StatusOr<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, const Entry& entry) {
  ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(checkpoint, entry));
  std::vector<float> out(static_cast<size_t>(entry.view.shape.num_elements()));
  if (entry.view.dtype == DType::kF32) {
    std::memcpy(out.data(), bytes.data(), bytes.size());
  } else {
    CHECK(entry.view.dtype == DType::kBF16);
    for (size_t i = 0; i < out.size(); ++i) {
      BF16 value;
      std::memcpy(&value, bytes.data() + i * sizeof(value), sizeof(value));
      out[i] = ToFloat(value);
    }
  }
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::isfinite(out[i])) continue;
    return DataLossF("{}: element {} is {}, expected a finite number ({})", Printable(entry.name),
                     i, out[i], checkpoint.FileOf(entry));
  }
  return out;
}

absl::Status WrongTable(const Checkpoint& checkpoint, const Entry& entry, size_t i, float found,
                        std::string_view expected) {
  return DataLossF("{}: element {} is {}, expected {} ({})", Printable(entry.name), i, found,
                   expected, checkpoint.FileOf(entry));
}

}  // namespace

std::vector<const Entry*> StoredMatrix::companions() const {
  std::vector<const Entry*> out;
  for (const Entry* companion :
       {scale, quant_map, quant_state, nested_absmax, nested_quant_map, weight_format}) {
    if (companion != nullptr) out.push_back(companion);
  }
  return out;
}

int64_t StoredMatrix::stored_bytes() const {
  auto bytes = static_cast<int64_t>(weight.size_bytes());
  for (const Entry* companion : companions()) {
    bytes += static_cast<int64_t>(companion->view.size_bytes());
  }
  return bytes;
}

absl::StatusOr<StoredMatrix> FindStoredMatrix(const Checkpoint& checkpoint, std::string_view name,
                                              const Shape& shape) {
  StoredMatrix out;
  out.name = std::string(name);
  out.entry = checkpoint.Find(name);
  const Finder finder(checkpoint, name, out.entry);
  if (out.entry == nullptr) return finder.NoWeight(shape);
  const Entry& weight = *out.entry;
  out.weight = weight.view;
  const bool matrix = shape.rank() == 2;
  out.rows = matrix ? shape.dim(0) : 1;
  out.cols = matrix ? shape.dim(1) : shape.num_elements();

  // bitsandbytes stores its bytes as elements of any type, so this comes before the dtype.
  if (matrix) {
    const Entry* const nf4 = finder.Of(".quant_state.bitsandbytes__nf4");
    const Entry* const fp4 = finder.Of(".quant_state.bitsandbytes__fp4");
    if (nf4 != nullptr && fp4 != nullptr) {
      return FailedPreconditionF("{}: has {} ({}) and {} ({}), expected one of them", name,
                                 nf4->name, checkpoint.FileOf(*nf4), fp4->name,
                                 checkpoint.FileOf(*fp4));
    }
    if (nf4 != nullptr || fp4 != nullptr) {
      out.format = nf4 != nullptr ? StoredFormat::kNF4 : StoredFormat::kFP4;
      out.quant_state = nf4 != nullptr ? nf4 : fp4;
      const TensorView& state = out.quant_state->view;
      if (state.dtype != DType::kU8 || state.shape.rank() != 1 ||
          state.size_bytes() > kMaxQuantStateBytes) {
        return finder.Contradiction(*out.quant_state,
                                    fmt::format("U8 of at most {} bytes", kMaxQuantStateBytes));
      }
      RETURN_IF_ERROR(finder.FindBnb4(weight, &out));
      return out;
    }
    if (finder.Of(".absmax") != nullptr || finder.Of(".quant_map") != nullptr) {
      return finder.Missing(fmt::format("{}.quant_state.bitsandbytes__nf4 (or __fp4)", name),
                            weight);
    }
  }
  const DType dtype = weight.view.dtype;
  switch (dtype) {
    case DType::kBF16:
      out.format = StoredFormat::kBF16;
      break;
    case DType::kF16:
      out.format = StoredFormat::kF16;
      break;
    case DType::kF32:
      out.format = StoredFormat::kF32;
      break;
    case DType::kI8:
      out.format = StoredFormat::kInt8;
      break;
    case DType::kF8E4M3:
      out.format = StoredFormat::kFP8;
      break;
    default:
      return finder.UnsupportedDType(weight, matrix);
  }
  if (!matrix && !IsPlain(out.format)) return finder.UnsupportedDType(weight, matrix);
  if (weight.view.shape != shape) return finder.WrongShape(weight, shape);
  if (out.format == StoredFormat::kInt8) RETURN_IF_ERROR(finder.FindInt8(weight, &out));
  if (out.format == StoredFormat::kFP8) RETURN_IF_ERROR(finder.FindFP8(weight, &out));
  return out;
}

absl::StatusOr<BnbQuantState> ReadQuantState(const Checkpoint& checkpoint,
                                             const StoredMatrix& matrix) {
  CHECK(matrix.quant_state != nullptr);
  const Entry& entry = *matrix.quant_state;
  const std::string source = fmt::format("{} ({})", entry.name, checkpoint.FileOf(entry));
  ASSIGN_OR_RETURN(const std::string json, ReadBytes(checkpoint, entry));
  ASSIGN_OR_RETURN(BnbQuantState state, ParseBnbQuantState(json, source));
  const std::string_view type = StoredFormatName(matrix.format);
  if (state.quant_type != type) {
    return DataLossF("{}: quant_type is \"{}\", expected \"{}\" as the tensor's name", source,
                     state.quant_type, type);
  }
  if (state.shape != Shape{matrix.rows, matrix.cols}) {
    return DataLossF("{}: shape is {}, expected [{}, {}]", source, state.shape.ToString(),
                     matrix.rows, matrix.cols);
  }
  if (matrix.double_quantised() && !state.nested) {
    return DataLossF("{}: nested_offset is missing, although {} is U8 with {} beside it", source,
                     matrix.scale->name, matrix.nested_absmax->name);
  }
  if (!matrix.double_quantised() && state.nested) {
    return DataLossF("{}: has nested_offset, although {} is F32, which is not quantised", source,
                     matrix.scale->name);
  }
  const auto count = [&](const Entry& companion, int64_t expected, std::string_view per) {
    if (companion.view.shape.num_elements() == expected) return absl::OkStatus();
    return DataLossF("{}: shape {}, expected [{}]: one for each {} ({})", companion.name,
                     companion.view.shape.ToString(), expected, per, checkpoint.FileOf(companion));
  };
  const int64_t blocks = CeilDiv(matrix.rows * matrix.cols, state.block_size);
  RETURN_IF_ERROR(count(*matrix.scale, blocks, fmt::format("{} weights", state.block_size)));
  if (state.nested) {
    RETURN_IF_ERROR(count(*matrix.nested_absmax, CeilDiv(blocks, state.nested_block_size),
                          fmt::format("{} scales", state.nested_block_size)));
  }
  return state;
}

absl::StatusOr<DType> DequantizedDType(const Checkpoint& checkpoint, const StoredMatrix& matrix) {
  switch (matrix.format) {
    case StoredFormat::kNF4:
    case StoredFormat::kFP4: {
      ASSIGN_OR_RETURN(const BnbQuantState state, ReadQuantState(checkpoint, matrix));
      return state.dtype;
    }
    case StoredFormat::kInt8:
      return kIntegerValues;
    case StoredFormat::kFP8:
      return kF8Values;
    default:
      return matrix.weight.dtype;
  }
}

absl::StatusOr<MatrixDecoder> MatrixDecoder::Create(const Checkpoint& checkpoint,
                                                    StoredMatrix matrix) {
  MatrixDecoder out;
  out.matrix_ = std::move(matrix);
  out.dtype_ = out.matrix_.weight.dtype;
  switch (out.matrix_.format) {
    case StoredFormat::kNF4:
    case StoredFormat::kFP4:
      RETURN_IF_ERROR(out.ReadBnb4(checkpoint));
      break;
    case StoredFormat::kInt8:
      RETURN_IF_ERROR(out.ReadInt8(checkpoint));
      break;
    case StoredFormat::kFP8:
      RETURN_IF_ERROR(out.ReadFP8(checkpoint));
      break;
    default:
      break;
  }
  return out;
}

absl::Status MatrixDecoder::ReadBnb4(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(const BnbQuantState state, ReadQuantState(checkpoint, matrix_));
  dtype_ = state.dtype;
  block_size_ = state.block_size;
  ASSIGN_OR_RETURN(const std::vector<float> table, ReadFloats(checkpoint, *matrix_.quant_map));
  std::copy(table.begin(), table.end(), table_);
  for (size_t i = 1; i < 16; ++i) {
    if (matrix_.format == StoredFormat::kNF4 && !(table[i] > table[i - 1])) {
      return WrongTable(checkpoint, *matrix_.quant_map, i, table[i],
                        fmt::format("more than element {}, {}", i - 1, table[i - 1]));
    }
    // Eight magnitudes in the order of their bits, then the same with the other sign.
    if (matrix_.format == StoredFormat::kFP4 && i >= 8 && table[i] != -table[i - 8]) {
      return WrongTable(checkpoint, *matrix_.quant_map, i, table[i],
                        fmt::format("the negative of element {}, {}", i - 8, table[i - 8]));
    }
  }
  if (state.nested) {
    ASSIGN_OR_RETURN(const std::string codes, ReadBytes(checkpoint, *matrix_.scale));
    ASSIGN_OR_RETURN(const std::vector<float> nested,
                     ReadFloats(checkpoint, *matrix_.nested_absmax));
    ASSIGN_OR_RETURN(const std::vector<float> map,
                     ReadFloats(checkpoint, *matrix_.nested_quant_map));
    for (size_t i = 1; i < map.size(); ++i) {
      if (map[i] < map[i - 1]) {
        return WrongTable(checkpoint, *matrix_.nested_quant_map, i, map[i],
                          fmt::format("at least element {}, {}", i - 1, map[i - 1]));
      }
    }
    scales_.resize(codes.size());
    DequantizeAbsmax({reinterpret_cast<const uint8_t*>(codes.data()), codes.size()}, map.data(),
                     nested.data(), state.nested_block_size, state.nested_offset, scales_.data());
  } else {
    ASSIGN_OR_RETURN(scales_, ReadFloats(checkpoint, *matrix_.scale));
  }
  const auto largest = [](float a, float b) { return std::abs(a) < std::abs(b); };
  const float code = *std::max_element(table.begin(), table.end(), largest);
  for (size_t i = 0; i < scales_.size(); ++i) {
    if (std::isfinite(RoundTo(dtype_, scales_[i] * code))) continue;
    return DataLossF("{}: element {} decodes to {}, expected a finite {} ({})", matrix_.scale->name,
                     i, scales_[i], DTypeName(dtype_), checkpoint.FileOf(*matrix_.scale));
  }
  return absl::OkStatus();
}

absl::Status MatrixDecoder::ReadInt8(const Checkpoint& checkpoint) {
  dtype_ = kIntegerValues;
  if (matrix_.weight_format != nullptr) {
    ASSIGN_OR_RETURN(const std::string format, ReadBytes(checkpoint, *matrix_.weight_format));
    if (format[0] != 0) {
      return StatusF(absl::StatusCode::kUnimplemented,
                     "{} is {} (col32, turing or ampere), supported: 0, rows ({})",
                     matrix_.weight_format->name, static_cast<unsigned char>(format[0]),
                     checkpoint.FileOf(*matrix_.weight_format));
    }
  }
  ASSIGN_OR_RETURN(scales_, ReadFloats(checkpoint, *matrix_.scale));
  return absl::OkStatus();
}

absl::Status MatrixDecoder::ReadFP8(const Checkpoint& checkpoint) {
  dtype_ = kF8Values;
  ASSIGN_OR_RETURN(scales_, ReadFloats(checkpoint, *matrix_.scale));
  const Shape blocks{CeilDiv(matrix_.rows, kF8Block), CeilDiv(matrix_.cols, kF8Block)};
  const bool by_block = matrix_.scale->view.shape == blocks;
  block_rows_ = by_block ? kF8Block : 1;
  block_cols_ = by_block ? kF8Block : matrix_.cols;
  return absl::OkStatus();
}

std::span<const std::byte> MatrixDecoder::RowBytes(int64_t first, int64_t count) const {
  CHECK(first >= 0 && count >= 0 && first + count <= matrix_.rows);
  if (block_size_ > 0) {  // two weights a byte
    const int64_t begin = first * matrix_.cols / 2;
    const int64_t end = CeilDiv((first + count) * matrix_.cols, 2);
    return {matrix_.weight.data + begin, static_cast<size_t>(end - begin)};
  }
  const int64_t row_bytes =
      matrix_.cols * static_cast<int64_t>(DTypeSizeBytes(matrix_.weight.dtype));
  return {matrix_.weight.data + first * row_bytes, static_cast<size_t>(count * row_bytes)};
}

void MatrixDecoder::DecodeRows(int64_t first, int64_t count, const std::byte* raw,
                               float* out) const {
  CHECK(first >= 0 && count >= 0 && first + count <= matrix_.rows);
  const int64_t cols = matrix_.cols;
  const auto n = static_cast<size_t>(cols);
  switch (matrix_.format) {
    case StoredFormat::kF32:
      std::memcpy(out, raw, static_cast<size_t>(count) * n * sizeof(float));
      return;
    case StoredFormat::kBF16:
    case StoredFormat::kF16:
      for (int64_t i = 0; i < count * cols; ++i) {
        uint16_t bits;
        std::memcpy(&bits, raw + i * 2, sizeof(bits));
        out[i] = matrix_.format == StoredFormat::kBF16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits});
      }
      return;
    case StoredFormat::kNF4:
    case StoredFormat::kFP4: {
      const Bnb4Codes codes = {.codes = raw,
                               .first_code = first * cols / 2 * 2,
                               .table = table_,
                               .absmax = scales_.data(),
                               .block_size = block_size_,
                               .dtype = dtype_};
      DequantizeBnb4(codes, first * cols, count * cols, out);
      return;
    }
    case StoredFormat::kInt8:
      for (int64_t r = 0; r < count; ++r) {
        DequantizeInt8Row(raw + r * cols, scales_[static_cast<size_t>(first + r)], dtype_,
                          {out + r * cols, n});
      }
      return;
    case StoredFormat::kFP8:
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row_blocks = CeilDiv(cols, block_cols_);
        const float* const scales =
            scales_.data() + static_cast<size_t>((first + r) / block_rows_ * row_blocks);
        DequantizeF8Row(raw + r * cols, scales, block_cols_, dtype_, {out + r * cols, n});
      }
      return;
  }
}

bool MatrixDecoder::IsPoolNF4(std::string* difference) const {
  if (matrix_.format != StoredFormat::kNF4) {
    *difference = fmt::format("it is {}", StoredFormatName(matrix_.format));
  } else if (block_size_ != kNF4BlockSize) {
    *difference = fmt::format("its blocks have {} weights, not {}", block_size_, kNF4BlockSize);
  } else if (matrix_.cols % kNF4BlockSize != 0) {
    *difference = fmt::format("its rows of {} weights are no whole blocks of {}", matrix_.cols,
                              kNF4BlockSize);
  } else if (dtype_ != DType::kBF16) {
    *difference = fmt::format("its values are {}, not BF16", DTypeName(dtype_));
  } else if (!std::equal(std::begin(table_), std::end(table_), std::begin(kNF4Table))) {
    *difference = "its quant_map is not the NF4 table";
  } else {
    difference->clear();
  }
  return difference->empty();
}

}  // namespace banyan
