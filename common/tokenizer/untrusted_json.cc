#include "common/tokenizer/untrusted_json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"

namespace banyan {
namespace {

using Json = nlohmann::ordered_json;

// nlohmann's SAX events into a document, within the limits.
class Builder {
 public:
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  bool null() { return Add(nullptr); }
  bool boolean(bool value) { return Add(value); }
  bool number_integer(number_integer_t value) { return Add(value); }
  bool number_unsigned(number_unsigned_t value) { return Add(value); }
  bool number_float(number_float_t value, const string_t&) { return Add(value); }
  bool string(string_t& value) { return Add(std::move(value)); }
  bool binary(binary_t&) { return false; }
  bool key(string_t& value) {
    if (stack_.back()->size() >= kMaxJsonKeys) {
      status_ = InvalidArgumentF("an object with more than {} keys", kMaxJsonKeys);
      return false;
    }
    key_ = std::move(value);
    return true;
  }
  bool start_object(size_t) { return Open(Json::object()); }
  bool start_array(size_t) { return Open(Json::array()); }
  bool end_object() { return Close(); }
  bool end_array() { return Close(); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    std::string_view what = error.what();
    // Drops the library's own prefix, "[json.exception.parse_error.101] parse error at ...: ".
    if (const size_t colon = what.find(": "); colon != std::string_view::npos) {
      what.remove_prefix(colon + 2);
    }
    status_ = InvalidArgumentF("not valid JSON at byte {}: {}", position, Printable(what, 200));
    return false;
  }

  const absl::Status& status() const { return status_; }
  Json& root() { return root_; }

 private:
  template <typename T>
  bool Add(T&& value) {
    Insert(Json(std::forward<T>(value)));
    return true;
  }

  Json* Insert(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& place = parent[key_];
    place = std::move(value);
    return &place;
  }

  bool Open(Json empty) {
    if (stack_.size() >= kMaxJsonDepth) {
      status_ = InvalidArgumentF("nested deeper than {} levels", kMaxJsonDepth);
      return false;
    }
    stack_.push_back(Insert(std::move(empty)));
    return true;
  }

  bool Close() {
    stack_.pop_back();
    return true;
  }

  absl::Status status_;
  Json root_;
  std::vector<Json*> stack_;  // containers not closed yet
  std::string key_;
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> ParseUntrustedJson(std::string_view text) {
  Builder builder;
  const bool parsed = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.status().ok()) return builder.status();
  if (!parsed) return InvalidArgumentF("not valid JSON");
  return std::move(builder.root());
}

}  // namespace banyan
