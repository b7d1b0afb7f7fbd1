// Tokens of one answer to text: incremental decoding and stop strings across token borders.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/tokenizer/incremental_decoder.h"

namespace banyan::trunk {

// Finds the first of several strings in a text that comes in pieces: the one whose last byte comes
// first, and among those that end together the longest. The result does not depend on where the
// pieces end. Thread-compatible.
class StopMatcher {
 public:
  // `stop`: none empty.
  explicit StopMatcher(std::vector<std::string> stop);

  // Appends to `out` the text that can no longer become part of a match; what could is held back.
  // True once a string has been found: `out` then ends right before it and nothing more may come.
  bool Add(std::string_view text, std::string& out);
  // The text still held back.
  std::string TakeHeld();

  const std::string& match() const { return match_; }

 private:
  // Knuth-Morris-Pratt: one step per byte, however repetitive the strings are.
  struct Automaton {
    std::string pattern;
    std::vector<int32_t> failure;  // longest proper border of pattern[0, i]
    int32_t state = 0;             // bytes matched so far
  };
  std::vector<Automaton> automata_;
  std::string held_;
  std::string match_;
};

// Special tokens contribute no text. Text lags the tokens by an incomplete character and by what
// could become a stop string. Without a tokenizer there is no text. Thread-compatible; borrows the
// tokenizer.
class TextStream {
 public:
  // `tokenizer` may be null; then `stop` is empty.
  TextStream(const BpeTokenizer* tokenizer, std::vector<std::string> stop);

  // Appends the text that became certain; true once a stop string has been found.
  bool Add(int32_t token_id, std::string& out);
  // Appends the rest. Not after a match.
  void Finish(std::string& out);

  const std::string& stop_match() const { return matcher_.match(); }

 private:
  std::optional<IncrementalDecoder> decoder_;
  StopMatcher matcher_;
};

}  // namespace banyan::trunk
