// The Qwen pre-tokeniser regular expression as a hand-written scanner: linear time, no
// backtracking. Source: tokenizer spec section 3.1.
#pragma once

#include <cstddef>
#include <string_view>

#include "common/tokenizer/unicode_tables.h"

namespace banyan {

// The one pattern the scanner implements, as tokenizer.json spells it.
inline constexpr std::string_view kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

class PreTokenizer {
 public:
  PreTokenizer() : classes_(CharClassTable()) {}

  // Where the piece that starts at `pos` ends. `text` is valid UTF-8, pos < text.size() at a
  // character; the result is greater than pos.
  size_t PieceEnd(std::string_view text, size_t pos) const;

 private:
  struct Character {
    CharClass char_class;
    int32_t num_bytes;  // 0 at the end of the text
  };
  Character At(std::string_view text, size_t pos) const;
  size_t SkipRun(std::string_view text, size_t pos, CharClass char_class) const;

  const CharClass* classes_;
};

}  // namespace banyan
