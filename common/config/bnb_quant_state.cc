#include "common/config/bnb_quant_state.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/json_object.h"

namespace banyan {
namespace {

constexpr int64_t kBlockSizes[] = {32, 64, 128, 256, 512, 1024, 2048, 4096};
constexpr int64_t kMaxDim = int64_t{1} << 31;
constexpr const char* kPlainKeys[] = {"quant_type", "blocksize", "dtype", "shape"};
constexpr const char* kNestedKeys[] = {"nested_blocksize", "nested_dtype", "nested_offset"};

// The file is at fault, not an argument.
absl::Status AsDataLoss(const absl::Status& status) {
  return absl::Status(absl::StatusCode::kDataLoss, status.message());
}

absl::Status Unsupported(const JsonObject& state, std::string_view key, std::string_view found,
                         std::string_view supported) {
  return StatusF(absl::StatusCode::kUnimplemented, "{}: {} is {}, supported: {}", state.place(),
                 key, found, supported);
}

absl::StatusOr<int64_t> BlockSize(const JsonObject& state, std::string_view key) {
  absl::StatusOr<int64_t> size = state.Int(key, 1, kMaxDim);
  if (!size.ok()) return AsDataLoss(size.status());
  if (std::find(std::begin(kBlockSizes), std::end(kBlockSizes), *size) == std::end(kBlockSizes)) {
    return Unsupported(state, key, fmt::format("{}", *size),
                       "32, 64, 128, 256, 512, 1024, 2048 or 4096");
  }
  return size;
}

absl::StatusOr<std::string> Text(const JsonObject& state, std::string_view key) {
  if (state.Find(key) == nullptr) return AsDataLoss(state.Error(key, "is missing"));
  absl::StatusOr<std::string> text = state.String(key);
  if (!text.ok()) return AsDataLoss(text.status());
  return text;
}

absl::StatusOr<DType> ValueDType(const JsonObject& state) {
  ASSIGN_OR_RETURN(const std::string name, Text(state, "dtype"));
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  return Unsupported(state, "dtype", fmt::format("\"{}\"", Printable(name)),
                     "bfloat16, float16 and float32");
}

absl::StatusOr<Shape> MatrixShape(const JsonObject& state) {
  const nlohmann::json* const shape = state.Find("shape");
  if (shape == nullptr) return AsDataLoss(state.Error("shape", "is missing"));
  bool sound = shape->is_array() && shape->size() == 2;
  if (sound) {
    for (const nlohmann::json& dim : *shape) {
      sound &= dim.is_number_unsigned() && dim.get<uint64_t>() >= 1 &&
               dim.get<uint64_t>() <= static_cast<uint64_t>(kMaxDim);
    }
  }
  if (!sound) {
    return AsDataLoss(
        state.Error("shape", fmt::format("is {}, expected [rows, columns]", Describe(*shape))));
  }
  return Shape{(*shape)[0].get<int64_t>(), (*shape)[1].get<int64_t>()};
}

absl::Status ReadNested(const JsonObject& state, BnbQuantState* out) {
  for (const char* key : kNestedKeys) out->nested |= state.Find(key) != nullptr;
  if (!out->nested) return absl::OkStatus();
  for (const char* key : kNestedKeys) {
    if (state.Find(key) == nullptr) {
      return AsDataLoss(state.Error(key, "is missing, although other nested keys are there"));
    }
  }
  ASSIGN_OR_RETURN(out->nested_block_size, BlockSize(state, "nested_blocksize"));
  ASSIGN_OR_RETURN(const std::string dtype, Text(state, "nested_dtype"));
  if (dtype != "float32") {
    return Unsupported(state, "nested_dtype", fmt::format("\"{}\"", Printable(dtype)), "float32");
  }
  constexpr double kMax = std::numeric_limits<float>::max();
  const absl::StatusOr<double> offset = state.Number("nested_offset", -kMax, kMax);
  if (!offset.ok()) return AsDataLoss(offset.status());
  out->nested_offset = static_cast<float>(*offset);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BnbQuantState> ParseBnbQuantState(std::string_view json, std::string_view source) {
  absl::StatusOr<nlohmann::json> document = ParseJsonObject(json, source);
  if (!document.ok()) return AsDataLoss(document.status());
  const JsonObject state(*document, std::string(source));
  // A key that is not known could change what the numbers mean.
  for (const auto& [key, value] : document->items()) {
    const auto is = [&key = key](const char* known) { return key == known; };
    if (std::none_of(std::begin(kPlainKeys), std::end(kPlainKeys), is) &&
        std::none_of(std::begin(kNestedKeys), std::end(kNestedKeys), is)) {
      return StatusF(absl::StatusCode::kUnimplemented, "{}: unknown key '{}'", source,
                     Printable(key));
    }
  }
  BnbQuantState out;
  ASSIGN_OR_RETURN(out.quant_type, Text(state, "quant_type"));
  if (out.quant_type != "nf4" && out.quant_type != "fp4") {
    return Unsupported(state, "quant_type", fmt::format("\"{}\"", Printable(out.quant_type)),
                       "nf4 and fp4");
  }
  ASSIGN_OR_RETURN(out.block_size, BlockSize(state, "blocksize"));
  ASSIGN_OR_RETURN(out.dtype, ValueDType(state));
  ASSIGN_OR_RETURN(out.shape, MatrixShape(state));
  RETURN_IF_ERROR(ReadNested(state, &out));
  return out;
}

}  // namespace banyan
