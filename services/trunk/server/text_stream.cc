#include "services/trunk/server/text_stream.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace banyan::trunk {

StopMatcher::StopMatcher(std::vector<std::string> stop) {
  for (std::string& pattern : stop) {
    CHECK(!pattern.empty());
    std::vector<int32_t> failure(pattern.size(), 0);
    for (size_t i = 1; i < pattern.size(); ++i) {
      int32_t border = failure[i - 1];
      while (border > 0 && pattern[i] != pattern[static_cast<size_t>(border)]) {
        border = failure[static_cast<size_t>(border) - 1];
      }
      if (pattern[i] == pattern[static_cast<size_t>(border)]) ++border;
      failure[i] = border;
    }
    automata_.push_back({std::move(pattern), std::move(failure)});
  }
}

bool StopMatcher::Add(std::string_view text, std::string& out) {
  if (automata_.empty()) {
    out.append(text);
    return false;
  }
  for (const char c : text) {
    held_.push_back(c);
    size_t longest = 0;
    const Automaton* found = nullptr;
    for (Automaton& a : automata_) {
      while (a.state > 0 && c != a.pattern[static_cast<size_t>(a.state)]) {
        a.state = a.failure[static_cast<size_t>(a.state) - 1];
      }
      if (c == a.pattern[static_cast<size_t>(a.state)]) ++a.state;
      const auto matched = static_cast<size_t>(a.state);
      if (matched == a.pattern.size() && (found == nullptr || matched > found->pattern.size())) {
        found = &a;
      }
      longest = std::max(longest, matched);
    }
    if (found != nullptr) {
      match_ = found->pattern;
      out.append(held_, 0, held_.size() - match_.size());
      held_.clear();
      return true;
    }
    if (held_.size() > longest) {
      out.append(held_, 0, held_.size() - longest);
      held_.erase(0, held_.size() - longest);
    }
  }
  return false;
}

std::string StopMatcher::TakeHeld() { return std::exchange(held_, std::string()); }

TextStream::TextStream(const BpeTokenizer* tokenizer, std::vector<std::string> stop)
    : matcher_(std::move(stop)) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, /*skip_special=*/true);
}

bool TextStream::Add(int32_t token_id, std::string& out) {
  if (!decoder_.has_value()) return false;
  return matcher_.Add(decoder_->Add(token_id), out);
}

void TextStream::Finish(std::string& out) {
  if (!decoder_.has_value()) return;
  // A stop string of U+FFFD could still match; the answer is over either way.
  if (!matcher_.Add(decoder_->Finish(), out)) out.append(matcher_.TakeHeld());
}

}  // namespace banyan::trunk
