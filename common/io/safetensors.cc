#include "common/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/json_error.h"

namespace banyan {
namespace {

constexpr uint64_t kLengthBytes = 8;

// Receives the events of the JSON parser; no tree is built, so 450,000 tensors cost one pass, and
// repeated keys are seen. Every callback returns false after Fail, which stops the parser.
class HeaderSax {
 public:
  HeaderSax(std::string_view source, std::vector<SafetensorsTensor>* tensors)
      : source_(source), tensors_(*tensors) {}

  const absl::Status& status() const { return status_; }

  bool null() { return Unexpected("null"); }
  bool boolean(bool) { return Unexpected("a boolean"); }
  bool number_integer(int64_t value) {
    return Fail(DataLossF("{}: {} has the negative number {}", source_, Where(), value));
  }
  bool number_float(double, const std::string& text) {
    return Fail(DataLossF("{}: {} has {}, expected an integer below 2^63", source_, Where(),
                          Printable(text, 40)));
  }
  bool binary(nlohmann::json::binary_t&) { return Unexpected("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (place_ == Place::kShape) return AddDimension(value);
    if (place_ != Place::kOffsets) return Unexpected("a number");
    if (num_offsets_ == 2) {
      return Fail(DataLossF("{}: {} has more than two numbers", source_, Where()));
    }
    offsets_[num_offsets_++] = value;
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != Field::kDType) return Unexpected("a string");
    const std::optional<DType> dtype = ParseDType(value);
    if (!dtype.has_value()) {
      return Fail(StatusF(absl::StatusCode::kUnimplemented,
                          "{}: tensor '{}': dtype '{}' is not supported", source_,
                          Printable(tensor_.name), Printable(value, 40)));
    }
    tensor_.dtype = *dtype;
    return true;
  }

  bool start_object(size_t) {
    if (place_ == Place::kOutside) {
      place_ = Place::kTop;
      return true;
    }
    if (place_ != Place::kTop) return Unexpected("an object");
    if (metadata_key_) {
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    seen_ = 0;
    field_ = Field::kNone;
    dims_.clear();
    num_offsets_ = 0;
    return true;
  }

  bool key(std::string& name) {
    if (place_ == Place::kTop) {
      metadata_key_ = name == "__metadata__";
      if (metadata_key_) {
        if (metadata_seen_) {
          return Fail(DataLossF("{}: '__metadata__' appears twice", source_));
        }
        metadata_seen_ = true;
        return true;
      }
      if (name.empty()) return Fail(DataLossF("{}: a tensor has an empty name", source_));
      tensor_.name = std::move(name);
      return true;
    }
    if (place_ == Place::kMetadata) return true;
    field_ = name == "dtype"          ? Field::kDType
             : name == "shape"        ? Field::kShape
             : name == "data_offsets" ? Field::kOffsets
                                      : Field::kNone;
    if (field_ == Field::kNone) {
      return Fail(
          DataLossF("{}: tensor '{}': unknown key '{}', expected dtype, shape, data_offsets",
                    source_, Printable(tensor_.name), Printable(name, 40)));
    }
    if (Seen(field_)) {
      return Fail(DataLossF("{}: tensor '{}': key '{}' appears twice", source_,
                            Printable(tensor_.name), name));
    }
    seen_ |= Bit(field_);
    return true;
  }

  bool start_array(size_t) {
    if (place_ == Place::kTensor && field_ == Field::kShape) {
      place_ = Place::kShape;
    } else if (place_ == Place::kTensor && field_ == Field::kOffsets) {
      place_ = Place::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    place_ = Place::kTensor;
    return true;
  }

  bool end_object() {
    if (place_ == Place::kTop) {
      place_ = Place::kOutside;
      return true;
    }
    const bool tensor = place_ == Place::kTensor;
    place_ = Place::kTop;
    return tensor ? FinishTensor() : true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    return Fail(DataLossF("{}: header: {}", source_, JsonErrorText(error.what())));
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };
  enum class Field : unsigned { kNone, kDType, kShape, kOffsets };

  static unsigned Bit(Field field) { return 1u << static_cast<unsigned>(field); }
  bool Seen(Field field) const { return (seen_ & Bit(field)) != 0; }

  bool Fail(absl::Status status) {
    status_ = std::move(status);
    return false;
  }

  std::string Where() const {
    switch (place_) {
      case Place::kOutside:
        return "header";
      case Place::kTop:
        return fmt::format("entry '{}'", metadata_key_ ? "__metadata__" : Printable(tensor_.name));
      case Place::kMetadata:
        return "'__metadata__'";
      case Place::kTensor:
        break;
      case Place::kShape:
        return fmt::format("tensor '{}': shape", Printable(tensor_.name));
      case Place::kOffsets:
        return fmt::format("tensor '{}': data_offsets", Printable(tensor_.name));
    }
    const char* const field = field_ == Field::kDType   ? "dtype"
                              : field_ == Field::kShape ? "shape"
                                                        : "data_offsets";
    return fmt::format("tensor '{}': {}", Printable(tensor_.name), field);
  }

  bool Unexpected(std::string_view found) {
    std::string_view expected = "an object";
    if (place_ == Place::kMetadata) expected = "strings only";
    if (place_ == Place::kShape || place_ == Place::kOffsets) expected = "non-negative integers";
    if (place_ == Place::kTensor) {
      expected = field_ == Field::kDType ? "a string" : "an array of non-negative integers";
    }
    return Fail(DataLossF("{}: {} is or holds {}, expected {}", source_, Where(), found, expected));
  }

  bool AddDimension(uint64_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(
          DataLossF("{}: {} has {}, expected an integer below 2^63", source_, Where(), value));
    }
    if (dims_.size() == kMaxTensorRank) {
      return Fail(
          DataLossF("{}: {} has more than {} dimensions", source_, Where(), kMaxTensorRank));
    }
    dims_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool FinishTensor() {
    const std::string_view missing = !Seen(Field::kDType)     ? "dtype"
                                     : !Seen(Field::kShape)   ? "shape"
                                     : !Seen(Field::kOffsets) ? "data_offsets"
                                                              : "";
    if (!missing.empty()) {
      return Fail(DataLossF("{}: tensor '{}': key '{}' is missing", source_,
                            Printable(tensor_.name), missing));
    }
    if (num_offsets_ != 2) {
      return Fail(DataLossF("{}: tensor '{}': data_offsets has {} numbers, expected 2", source_,
                            Printable(tensor_.name), num_offsets_));
    }
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    tensor_.shape = Shape(dims_);
    // In the order in which Shape::num_elements multiplies, so that it cannot overflow later.
    int64_t elements = 1;
    int64_t bytes = 0;
    bool overflow = false;
    for (int64_t dim : dims_) overflow |= __builtin_mul_overflow(elements, dim, &elements);
    overflow |= __builtin_mul_overflow(elements,
                                       static_cast<int64_t>(DTypeSizeBytes(tensor_.dtype)), &bytes);
    if (overflow) {
      return Fail(DataLossF("{}: tensor '{}': {} {} has more than 2^63 bytes", source_,
                            Printable(tensor_.name), DTypeName(tensor_.dtype),
                            tensor_.shape.ToString()));
    }
    if (tensor_.begin > tensor_.end) {
      return Fail(DataLossF("{}: tensor '{}': data_offsets [{}, {}] run backwards", source_,
                            Printable(tensor_.name), tensor_.begin, tensor_.end));
    }
    if (tensor_.end - tensor_.begin != static_cast<uint64_t>(bytes)) {
      return Fail(DataLossF(
          "{}: tensor '{}': data_offsets [{}, {}] hold {} bytes, expected {} for {} {}", source_,
          Printable(tensor_.name), tensor_.begin, tensor_.end, tensor_.end - tensor_.begin, bytes,
          DTypeName(tensor_.dtype), tensor_.shape.ToString()));
    }
    tensors_.push_back(std::move(tensor_));
    tensor_ = SafetensorsTensor();
    return true;
  }

  std::string_view source_;
  std::vector<SafetensorsTensor>& tensors_;
  absl::Status status_;

  Place place_ = Place::kOutside;
  Field field_ = Field::kNone;
  unsigned seen_ = 0;  // bit per Field
  bool metadata_key_ = false;
  bool metadata_seen_ = false;
  SafetensorsTensor tensor_;
  std::vector<int64_t> dims_;
  uint64_t offsets_[2] = {0, 0};
  int num_offsets_ = 0;
};

absl::Status CheckUniqueNames(const std::vector<SafetensorsTensor>& tensors,
                              std::string_view source) {
  absl::flat_hash_set<absl::string_view> names;
  names.reserve(tensors.size());
  for (const SafetensorsTensor& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return DataLossF("{}: tensor '{}' appears twice in the header", source,
                       Printable(tensor.name));
    }
  }
  return absl::OkStatus();
}

// Sorts by offset and checks that the tensors tile [0, data_bytes) exactly.
absl::Status CheckTiling(std::vector<SafetensorsTensor>& tensors, uint64_t data_bytes,
                         std::string_view source) {
  const auto by_offset = [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  };
  if (!std::is_sorted(tensors.begin(), tensors.end(), by_offset)) {
    std::stable_sort(tensors.begin(), tensors.end(), by_offset);
  }
  uint64_t cursor = 0;
  const SafetensorsTensor* previous = nullptr;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.end > data_bytes) {
      return DataLossF(
          "{}: tensor '{}': data_offsets [{}, {}] end outside the data area of {} bytes; the file "
          "is truncated or its header lies",
          source, Printable(tensor.name), tensor.begin, tensor.end, data_bytes);
    }
    if (tensor.begin < cursor) {
      return DataLossF("{}: tensor '{}': data_offsets [{}, {}] overlap those of '{}' [{}, {}]",
                       source, Printable(tensor.name), tensor.begin, tensor.end,
                       Printable(previous->name), previous->begin, previous->end);
    }
    if (tensor.begin > cursor) {
      return DataLossF("{}: tensor '{}': data_offsets [{}, {}] leave a hole of {} bytes before it",
                       source, Printable(tensor.name), tensor.begin, tensor.end,
                       tensor.begin - cursor);
    }
    cursor = tensor.end;
    previous = &tensor;
  }
  if (cursor != data_bytes) {
    return DataLossF("{}: the data area has {} bytes, but the header describes {}", source,
                     data_bytes, cursor);
  }
  return absl::OkStatus();
}

// The header length N, checked against the file's size.
absl::StatusOr<uint64_t> CheckHeaderLength(const std::byte (&length)[kLengthBytes],
                                           uint64_t file_bytes, std::string_view source) {
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= static_cast<uint64_t>(length[i]) << (8 * i);
  }
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return DataLossF("{}: header length {}, expected at most {}", source, header_bytes,
                     kMaxSafetensorsHeaderBytes);
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return DataLossF("{}: header length {}, but only {} bytes follow it", source, header_bytes,
                     file_bytes - kLengthBytes);
  }
  return header_bytes;
}

absl::Status CheckFileLength(uint64_t file_bytes, std::string_view source) {
  if (file_bytes >= kLengthBytes) return absl::OkStatus();
  return DataLossF("{}: {} bytes, too short for a safetensors file (at least 8)", source,
                   file_bytes);
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t data_bytes,
                                                         std::string_view source) {
  if (json.empty() || json.front() != '{') {
    return DataLossF("{}: the header begins with '{}', expected '{{'", source,
                     Printable(json.substr(0, 1)));
  }
  // The JSON library takes a NUL byte for the end of its input.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return DataLossF("{}: the header has a zero byte at {}", source, nul);
  }
  SafetensorsHeader header;
  header.data_offset = kLengthBytes + json.size();
  HeaderSax sax(source, &header.tensors);
  if (!nlohmann::json::sax_parse(json.data(), json.data() + json.size(), &sax)) return sax.status();
  RETURN_IF_ERROR(CheckUniqueNames(header.tensors, source));
  RETURN_IF_ERROR(CheckTiling(header.tensors, data_bytes, source));
  return header;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   std::string_view source) {
  RETURN_IF_ERROR(CheckFileLength(file.size(), source));
  std::byte length[kLengthBytes];
  std::memcpy(length, file.data(), kLengthBytes);
  ASSIGN_OR_RETURN(const uint64_t header_bytes, CheckHeaderLength(length, file.size(), source));
  const std::string_view json(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                              header_bytes);
  return ParseSafetensorsHeader(json, file.size() - kLengthBytes - header_bytes, source);
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const MappedFile& file,
                                                        std::string_view source,
                                                        std::string* header_bytes) {
  const uint64_t file_bytes = file.bytes().size();
  RETURN_IF_ERROR(CheckFileLength(file_bytes, source));
  std::byte length[kLengthBytes];
  RETURN_IF_ERROR(file.Read(0, length));
  ASSIGN_OR_RETURN(const uint64_t json_bytes, CheckHeaderLength(length, file_bytes, source));
  header_bytes->resize(kLengthBytes + json_bytes);
  RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(*header_bytes))));
  return ParseSafetensorsHeader(std::string_view(*header_bytes).substr(kLengthBytes),
                                file_bytes - kLengthBytes - json_bytes, source);
}

}  // namespace banyan
