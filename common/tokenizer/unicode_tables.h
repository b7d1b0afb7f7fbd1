// What the pre-tokeniser and the template interpreter ask of Unicode; data from ICU.
// Thread-safe; the table is made on first use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace banyan {

enum class CharClass : uint8_t {
  kOther,    // neither letter, number nor white space (marks, punctuation, symbols, controls)
  kLetter,   // general category L*
  kNumber,   // general category N*
  kSpace,    // White_Space, except the two below
  kNewline,  // CR, LF
};

// One entry per code point, U+0000..U+10FFFF.
const CharClass* CharClassTable();

// Normalization form C of valid UTF-8. When `text` already is in NFC it is returned itself;
// otherwise a view of `buffer`, which is overwritten.
std::string_view NormalizeNfc(std::string_view text, std::string& buffer);

// Python's str.isspace for one character: White_Space and U+001C..U+001F.
bool IsPythonSpace(uint32_t code_point);
// Python's str.isprintable for one character.
bool IsPythonPrintable(uint32_t code_point);
// Full case mapping, language neutral. Input: valid UTF-8.
std::string ToUpperUtf8(std::string_view text);
std::string ToLowerUtf8(std::string_view text);

}  // namespace banyan
