// Builds a JSON document from nlohmann's SAX events, to a bounded depth.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/base/strings.h"

namespace banyan {

// Json: nlohmann::json or ordered_json.
template <class Json>
class JsonTree {
 public:
  explicit JsonTree(size_t max_depth) : max_depth_(max_depth) {}

  // The name of the next value of the object that is open.
  void SetKey(std::string key) { key_ = std::move(key); }
  const std::string& key() const { return key_; }

  void Add(Json value) { Insert(std::move(value)); }
  // A container, open until its Close. kInvalidArgument beyond the depth.
  absl::Status Open(Json empty) {
    if (open_.size() >= max_depth_) {
      return InvalidArgumentF("nested deeper than {} levels", max_depth_);
    }
    open_.push_back(Insert(std::move(empty)));
    return absl::OkStatus();
  }
  void Close() { open_.pop_back(); }

  size_t depth() const { return open_.size(); }
  size_t size_of_open() const { return open_.back()->size(); }
  const Json& root() const { return root_; }
  Json TakeRoot() { return std::move(root_); }

 private:
  Json* Insert(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& place = parent[key_];
    place = std::move(value);
    return &place;
  }

  const size_t max_depth_;
  Json root_;
  std::vector<Json*> open_;  // each outlives those above it
  std::string key_;
};

// What is wrong with a text, without the library's own prefix
// "[json.exception.parse_error.101] parse error at ...: ".
inline absl::Status JsonSyntaxError(size_t position, std::string_view what) {
  if (const size_t colon = what.find(": "); colon != std::string_view::npos) {
    what.remove_prefix(colon + 2);
  }
  return InvalidArgumentF("not valid JSON at byte {}: {}", position, Printable(what, 200));
}

}  // namespace banyan
