// Finds added tokens in raw text, before anything else sees it: leftmost, then longest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "common/tokenizer/bpe_tokenizer.h"

namespace banyan {

// A trie over the contents. Immutable once built; thread-safe.
// Cost: one table look-up per byte of text, and a walk at bytes that start an added token.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher();

  // `content` is not empty and not present yet.
  void Add(std::string_view content, int32_t id, bool special);

  struct Match {
    size_t begin;
    size_t length;  // 0: no match up to the end of the text
    int32_t id;
  };
  // The parts of a text in which tokens marked special count: [begin, end) in ascending order, not
  // touching each other. Ordinary added tokens count everywhere.
  struct Range {
    size_t begin;
    size_t end;
  };
  // The first match that begins at or after `pos`. `range_idx` is the caller's cursor into
  // `trusted`, 0 at first; positions asked for must not decrease.
  Match Find(std::string_view text, size_t pos, const std::vector<Range>& trusted,
             size_t& range_idx) const;

  int32_t IdOf(std::string_view content) const;  // -1 when there is none

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> next;  // byte to node, ascending
    int32_t id = -1;
    bool special = false;
  };
  int32_t Next(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;
  int32_t first_[256];  // the root's edges; -1 where there is none
};

}  // namespace banyan
