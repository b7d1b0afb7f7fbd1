#include "common/tokenizer/untrusted_json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "common/base/strings.h"
#include "common/tokenizer/json_tree.h"

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
    if (tree_.size_of_open() >= kMaxJsonKeys) {
      return Check(InvalidArgumentF("an object with more than {} keys", kMaxJsonKeys));
    }
    tree_.SetKey(std::move(value));
    return true;
  }
  bool start_object(size_t) { return Check(tree_.Open(Json::object())); }
  bool start_array(size_t) { return Check(tree_.Open(Json::array())); }
  bool end_object() { return Close(); }
  bool end_array() { return Close(); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    return Check(JsonSyntaxError(position, error.what()));
  }

  const absl::Status& status() const { return status_; }
  Json TakeRoot() { return tree_.TakeRoot(); }

 private:
  bool Check(absl::Status status) {
    status_ = std::move(status);
    return status_.ok();
  }
  template <typename T>
  bool Add(T&& value) {
    tree_.Add(Json(std::forward<T>(value)));
    return true;
  }
  bool Close() {
    tree_.Close();
    return true;
  }

  absl::Status status_;
  JsonTree<Json> tree_{kMaxJsonDepth};
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> ParseUntrustedJson(std::string_view text) {
  Builder builder;
  const bool parsed = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.status().ok()) return builder.status();
  if (!parsed) return InvalidArgumentF("not valid JSON");
  return builder.TakeRoot();
}

}  // namespace banyan
