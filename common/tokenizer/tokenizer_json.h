// tokenizer.json as plain data, after every feature that changes ids has been checked: what is not
// supported is refused by name. Format: docs/formats/tokenizer.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan {

// Many short strings in one piece of memory.
class StringArena {
 public:
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }
  // The string under construction: append to tail(), then Commit.
  std::string& tail() { return bytes_; }
  void Commit() { ends_.push_back(bytes_.size()); }
  void Rollback() { bytes_.resize(ends_.empty() ? 0 : ends_.back()); }

 private:
  std::string bytes_;
  std::vector<size_t> ends_;
};

struct AddedTokenEntry {
  int32_t id;
  std::string content;
  bool special;
};

struct TokenizerJson {
  // Parallel: the bytes each entry spells (byte-level alphabet undone) and its id.
  StringArena vocab;
  std::vector<int32_t> vocab_ids;
  // Two strings per merge, in rank order: bytes again.
  StringArena merges;
  std::vector<AddedTokenEntry> added_tokens;
  bool normalize_nfc = false;
};

// Ids at or above this are refused: a table by id must stay small.
inline constexpr int32_t kMaxTokenId = 1 << 22;

// kInvalidArgument (malformed: where, expected, found) or kUnimplemented (a feature, by name).
absl::StatusOr<TokenizerJson> ParseTokenizerJson(std::string_view json, std::string_view source);

}  // namespace banyan
