#include "common/tokenizer/added_tokens.h"

#include <algorithm>

namespace banyan {

AddedTokenMatcher::AddedTokenMatcher() : nodes_(1) { std::fill_n(first_, 256, -1); }

int32_t AddedTokenMatcher::Next(int32_t node, uint8_t byte) const {
  const auto& edges = nodes_[node].next;
  const auto it =
      std::lower_bound(edges.begin(), edges.end(), std::pair<uint8_t, int32_t>(byte, 0));
  return it != edges.end() && it->first == byte ? it->second : -1;
}

void AddedTokenMatcher::Add(std::string_view content, int32_t id, bool special) {
  int32_t node = 0;
  for (const char c : content) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = Next(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& edges = nodes_[node].next;
      edges.insert(std::upper_bound(edges.begin(), edges.end(), std::pair(byte, next)),
                   std::pair(byte, next));
      if (node == 0) first_[byte] = next;
    }
    node = next;
  }
  nodes_[node].id = id;
  nodes_[node].special = special;
}

AddedTokenMatcher::Match AddedTokenMatcher::Find(std::string_view text, size_t pos,
                                                 const std::vector<Range>& trusted,
                                                 size_t& range_idx) const {
  for (; pos < text.size(); ++pos) {
    int32_t node = first_[static_cast<uint8_t>(text[pos])];
    if (node < 0) continue;
    while (range_idx < trusted.size() && trusted[range_idx].end <= pos) ++range_idx;
    size_t trusted_end = 0;
    if (range_idx < trusted.size() && trusted[range_idx].begin <= pos) {
      trusted_end = trusted[range_idx].end;
    }
    Match best{pos, 0, -1};
    for (size_t end = pos + 1;; ++end) {
      const Node& here = nodes_[node];
      if (here.id >= 0 && (!here.special || end <= trusted_end)) best = {pos, end - pos, here.id};
      if (end == text.size()) break;
      node = Next(node, static_cast<uint8_t>(text[end]));
      if (node < 0) break;
    }
    if (best.length > 0) return best;
  }
  return {text.size(), 0, -1};
}

int32_t AddedTokenMatcher::IdOf(std::string_view content) const {
  int32_t node = 0;
  for (const char c : content) {
    node = Next(node, static_cast<uint8_t>(c));
    if (node < 0) return -1;
  }
  return nodes_[node].id;
}

}  // namespace banyan
