#include "common/tokenizer/pre_tokenizer.h"

#include "common/tokenizer/utf8.h"

namespace banyan {
namespace {

// Length of 's 't 're 've 'm 'll 'd at `pos` (an apostrophe), any case; 0 when there is none.
// U+017F (long s) folds to s.
size_t ContractionLength(std::string_view text, size_t pos) {
  const std::string_view rest = text.substr(pos + 1);
  if (rest.empty()) return 0;
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  const char first = lower(rest[0]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (rest.size() >= 2) {
    const char second = lower(rest[1]);
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    if (rest[0] == '\xC5' && rest[1] == '\xBF') return 3;
  }
  return 0;
}

bool IsSpace(CharClass c) { return c == CharClass::kSpace || c == CharClass::kNewline; }

}  // namespace

PreTokenizer::Character PreTokenizer::At(std::string_view text, size_t pos) const {
  if (pos >= text.size()) return {CharClass::kOther, 0};
  int32_t num_bytes;
  const uint32_t code_point = DecodeValid(text, pos, num_bytes);
  return {classes_[code_point], num_bytes};
}

size_t PreTokenizer::SkipRun(std::string_view text, size_t pos, CharClass char_class) const {
  for (Character c = At(text, pos); c.num_bytes > 0 && c.char_class == char_class;
       c = At(text, pos)) {
    pos += c.num_bytes;
  }
  return pos;
}

// The alternatives of the pattern in their order; the first that matches wins.
size_t PreTokenizer::PieceEnd(std::string_view text, size_t pos) const {
  if (text[pos] == '\'') {
    if (const size_t length = ContractionLength(text, pos); length > 0) return pos + length;
  }
  const Character first = At(text, pos);
  const size_t after_first = pos + first.num_bytes;
  // [^\r\n\p{L}\p{N}]?\p{L}+
  if (first.char_class == CharClass::kLetter) {
    return SkipRun(text, after_first, CharClass::kLetter);
  }
  // \p{N}
  if (first.char_class == CharClass::kNumber) return after_first;
  const Character second = At(text, after_first);
  if (first.char_class != CharClass::kNewline && second.num_bytes > 0 &&
      second.char_class == CharClass::kLetter) {
    return SkipRun(text, after_first + second.num_bytes, CharClass::kLetter);
  }
  //  ?[^\s\p{L}\p{N}]+[\r\n]*
  if (first.char_class == CharClass::kOther ||
      (text[pos] == ' ' && second.num_bytes > 0 && second.char_class == CharClass::kOther)) {
    const size_t end = SkipRun(text, after_first, CharClass::kOther);
    return SkipRun(text, end, CharClass::kNewline);
  }
  // White space: to just after the last newline of the run; else the whole run where it ends the
  // text; else all but its last character, which belongs to what follows.
  size_t end = pos;
  size_t last_begin = pos;
  size_t after_newline = 0;
  for (Character c = first; c.num_bytes > 0 && IsSpace(c.char_class); c = At(text, end)) {
    last_begin = end;
    end += c.num_bytes;
    if (c.char_class == CharClass::kNewline) after_newline = end;
  }
  if (after_newline > 0) return after_newline;
  if (end == text.size() || last_begin == pos) return end;
  return last_begin;
}

}  // namespace banyan
