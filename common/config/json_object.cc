#include "common/config/json_object.h"

#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/json_error.h"

namespace banyan {
namespace {

// Sees what the tree builder does not report: repeated keys and depth. Keeps nothing else.
class StrictSax {
 public:
  explicit StrictSax(std::string_view source) : source_(source) {}

  const absl::Status& status() const { return status_; }

  bool null() { return Scalar(); }
  bool boolean(bool) { return Scalar(); }
  bool number_integer(int64_t) { return Scalar(); }
  bool number_unsigned(uint64_t) { return Scalar(); }
  bool number_float(double, const std::string&) { return Scalar(); }
  bool string(std::string&) { return Scalar(); }
  bool binary(nlohmann::json::binary_t&) { return Scalar(); }
  bool start_object(size_t) { return Push(); }
  bool end_object() { return Pop(); }
  bool start_array(size_t) { return keys_.empty() ? Scalar() : Push(); }
  bool end_array() { return Pop(); }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) {
      return Fail(InvalidArgumentF("{}: key '{}' appears twice", source_, Printable(name)));
    }
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    return Fail(InvalidArgumentF("{}: {}", source_, JsonErrorText(error.what())));
  }

 private:
  static constexpr size_t kMaxDepth = 64;

  bool Fail(absl::Status status) {
    status_ = std::move(status);
    return false;
  }
  bool Scalar() {
    if (!keys_.empty()) return true;
    return Fail(InvalidArgumentF("{}: not a JSON object", source_));
  }
  bool Push() {
    if (keys_.size() == kMaxDepth) {
      return Fail(InvalidArgumentF("{}: nested deeper than {} levels", source_, kMaxDepth));
    }
    keys_.emplace_back();
    return true;
  }
  bool Pop() {
    keys_.pop_back();
    return true;
  }

  std::string_view source_;
  absl::Status status_;
  std::vector<std::set<std::string>> keys_;  // one set per open object or array
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view source) {
  if (text.size() > kMaxConfigBytes) {
    return InvalidArgumentF("{}: {} bytes, expected at most {}", source, text.size(),
                            kMaxConfigBytes);
  }
  // The JSON library takes a NUL byte for the end of its input.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return InvalidArgumentF("{}: zero byte at {}", source, nul);
  }
  StrictSax sax(source);
  if (!nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &sax)) return sax.status();
  return nlohmann::json::parse(text.data(), text.data() + text.size(), nullptr,
                               /*allow_exceptions=*/false);
}

std::string Describe(const nlohmann::json& value) {
  // Depth is bounded by ParseJsonObject; invalid UTF-8 cannot pass the parser.
  return Printable(
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace), 80);
}

JsonObject::JsonObject(const nlohmann::json& object, std::string place)
    : object_(object), place_(std::move(place)) {}

const nlohmann::json* JsonObject::Find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonObject::Error(std::string_view key, std::string_view problem) const {
  return InvalidArgumentF("{}: {} {}", place_, key, problem);
}

absl::StatusOr<int64_t> JsonObject::Int(std::string_view key, int64_t min, int64_t max,
                                        std::optional<int64_t> default_value) const {
  const nlohmann::json* const value = Find(key);
  if (value == nullptr) {
    if (default_value.has_value()) return *default_value;
    return Error(key, "is missing");
  }
  // Unsigned values beyond int64 are out of every range we ask for.
  const bool fits =
      value->is_number_integer() &&
      !(value->is_number_unsigned() &&
        value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return Error(key,
                 fmt::format("is {}, expected an integer in {}..{}", Describe(*value), min, max));
  }
  return value->get<int64_t>();
}

absl::StatusOr<double> JsonObject::Number(std::string_view key, double min, double max,
                                          std::optional<double> default_value) const {
  const nlohmann::json* const value = Find(key);
  if (value == nullptr) {
    if (default_value.has_value()) return *default_value;
    return Error(key, "is missing");
  }
  // Written so that NaN would fail too.
  if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
    return Error(key,
                 fmt::format("is {}, expected a number in {}..{}", Describe(*value), min, max));
  }
  return value->get<double>();
}

absl::StatusOr<bool> JsonObject::Bool(std::string_view key, bool default_value) const {
  const nlohmann::json* const value = Find(key);
  if (value == nullptr) return default_value;
  if (!value->is_boolean()) {
    return Error(key, fmt::format("is {}, expected true or false", Describe(*value)));
  }
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonObject::String(std::string_view key) const {
  const nlohmann::json* const value = Find(key);
  if (value == nullptr) return std::string();
  if (!value->is_string()) {
    return Error(key, fmt::format("is {}, expected a string", Describe(*value)));
  }
  return value->get<std::string>();
}

absl::StatusOr<std::vector<int32_t>> JsonObject::IntList(std::string_view key, int64_t min,
                                                         int64_t max, bool allow_single) const {
  std::vector<int32_t> list;
  const nlohmann::json* const value = Find(key);
  if (value == nullptr) return list;
  if (allow_single && !value->is_array()) {
    ASSIGN_OR_RETURN(const int64_t single, Int(key, min, max));
    list.push_back(static_cast<int32_t>(single));
    return list;
  }
  if (!value->is_array()) {
    return Error(key, fmt::format("is {}, expected a list of integers", Describe(*value)));
  }
  for (size_t i = 0; i < value->size(); ++i) {
    const nlohmann::json& item = (*value)[i];
    if (!item.is_number_integer() || item < min || item > max) {
      return Error(key, fmt::format("[{}] is {}, expected an integer in {}..{}", i, Describe(item),
                                    min, max));
    }
    list.push_back(item.get<int32_t>());
  }
  return list;
}

}  // namespace banyan
