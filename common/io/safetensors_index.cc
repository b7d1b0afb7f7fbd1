#include "common/io/safetensors_index.h"

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/json_error.h"

namespace banyan {
namespace {

absl::Status CheckFileName(std::string_view name, std::string_view tensor,
                           std::string_view source) {
  constexpr std::string_view kSuffix = ".safetensors";
  const bool plain = name.size() > kSuffix.size() && name.front() != '.' &&
                     name.substr(name.size() - kSuffix.size()) == kSuffix &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
  if (plain) return absl::OkStatus();
  return DataLossF(
      "{}: tensor '{}' is said to be in '{}', expected a *.safetensors file of the same directory",
      source, Printable(tensor), Printable(name));
}

// Events of the JSON parser; no tree is built. Callbacks return false after Fail.
class IndexSax {
 public:
  IndexSax(std::string_view source, SafetensorsIndex* index) : source_(source), index_(*index) {}

  const absl::Status& status() const { return status_; }
  bool weight_map_seen() const { return weight_map_seen_; }

  bool null() { return Value("null"); }
  bool boolean(bool) { return Value("a boolean"); }
  bool number_integer(int64_t) { return Value("a number"); }
  bool number_unsigned(uint64_t) { return Value("a number"); }
  bool number_float(double, const std::string&) { return Value("a number"); }
  bool binary(nlohmann::json::binary_t&) { return Value("binary data"); }

  bool string(std::string& value) {
    if (!(in_weight_map_ && depth_ == 2)) return Value("a string");
    auto found = file_ids_.find(value);
    if (found == file_ids_.end()) {
      if (absl::Status status = CheckFileName(value, name_, source_); !status.ok()) {
        return Fail(std::move(status));
      }
      found = file_ids_.emplace(value, static_cast<int32_t>(file_ids_.size())).first;
    }
    index_.tensors.push_back({std::move(name_), found->second});
    name_.clear();
    return true;
  }

  bool key(std::string& name) {
    if (depth_ == 1) {
      in_weight_map_ = name == "weight_map";
      if (in_weight_map_ && std::exchange(weight_map_seen_, true)) {
        return Fail(DataLossF("{}: key 'weight_map' appears twice", source_));
      }
    } else if (depth_ == 2 && in_weight_map_) {
      name_ = std::move(name);
    }
    return true;
  }

  bool start_object(size_t) {
    if (in_weight_map_ && depth_ == 2) return Value("an object");
    ++depth_;
    return true;
  }
  bool end_object() {
    --depth_;
    return true;
  }
  bool start_array(size_t) {
    if (!Value("an array")) return false;
    ++depth_;
    return true;
  }
  bool end_array() {
    --depth_;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    return Fail(DataLossF("{}: {}", source_, JsonErrorText(error.what())));
  }

  // File numbers in order of first sight become positions in the sorted list.
  void SortFiles() {
    std::vector<int32_t> position(file_ids_.size());
    for (const auto& [name, id] : file_ids_) {
      position[static_cast<size_t>(id)] = static_cast<int32_t>(index_.files.size());
      index_.files.push_back(name);
    }
    for (SafetensorsIndex::Tensor& tensor : index_.tensors) {
      tensor.file_idx = position[static_cast<size_t>(tensor.file_idx)];
    }
  }

 private:
  bool Fail(absl::Status status) {
    status_ = std::move(status);
    return false;
  }

  // A value that is not an object; fine everywhere except as the document, as weight_map and in it.
  bool Value(std::string_view found) {
    if (depth_ == 0) return Fail(DataLossF("{}: is {}, expected an object", source_, found));
    if (!in_weight_map_) return true;
    if (depth_ == 1) {
      return Fail(DataLossF("{}: weight_map is {}, expected an object", source_, found));
    }
    return Fail(DataLossF("{}: weight_map: tensor '{}' has {}, expected a file name", source_,
                          Printable(name_), found));
  }

  std::string_view source_;
  SafetensorsIndex& index_;
  absl::Status status_;
  int64_t depth_ = 0;
  bool in_weight_map_ = false;
  bool weight_map_seen_ = false;
  std::string name_;
  std::map<std::string, int32_t> file_ids_;
};

}  // namespace

absl::StatusOr<SafetensorsIndex> ParseSafetensorsIndex(std::string_view json,
                                                       std::string_view source) {
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return DataLossF("{}: zero byte at {}", source, nul);
  }
  SafetensorsIndex index;
  IndexSax sax(source, &index);
  if (!nlohmann::json::sax_parse(json.data(), json.data() + json.size(), &sax)) return sax.status();
  if (!sax.weight_map_seen()) return DataLossF("{}: key 'weight_map' is missing", source);
  if (index.tensors.empty()) return DataLossF("{}: weight_map lists no tensor", source);
  sax.SortFiles();
  const auto by_name = [](const SafetensorsIndex::Tensor& a, const SafetensorsIndex::Tensor& b) {
    return a.name < b.name;
  };
  if (!std::is_sorted(index.tensors.begin(), index.tensors.end(), by_name)) {
    std::sort(index.tensors.begin(), index.tensors.end(), by_name);
  }
  const auto twice =
      std::adjacent_find(index.tensors.begin(), index.tensors.end(),
                         [](const SafetensorsIndex::Tensor& a, const SafetensorsIndex::Tensor& b) {
                           return a.name == b.name;
                         });
  if (twice != index.tensors.end()) {
    return DataLossF("{}: weight_map lists tensor '{}' twice", source, Printable(twice->name));
  }
  return index;
}

}  // namespace banyan
