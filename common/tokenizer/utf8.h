// UTF-8 as untrusted bytes: validation, and decoding that replaces what can never be valid.
// Replacement follows "maximal subparts" (Unicode 15, section 3.9, table 3-8), as Python's
// errors="replace" and Rust's from_utf8_lossy do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace banyan {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct DecodedCharacter {
  uint32_t code_point;  // U+FFFD when not valid
  int32_t num_bytes;    // what it occupies, at least 1; for invalid input the maximal subpart
  bool valid;
  // Not valid, but more bytes after the end of the text could have made it so.
  bool incomplete;
};

// The character at `text[pos]`; pos < text.size().
DecodedCharacter DecodeCharacter(std::string_view text, size_t pos);

// The same for text known to be valid UTF-8.
inline uint32_t DecodeValid(std::string_view text, size_t pos, int32_t& num_bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t lead = byte(pos);
  if (lead < 0x80) {
    num_bytes = 1;
    return lead;
  }
  if (lead < 0xE0) {
    num_bytes = 2;
    return (lead & 0x1F) << 6 | (byte(pos + 1) & 0x3F);
  }
  if (lead < 0xF0) {
    num_bytes = 3;
    return (lead & 0x0F) << 12 | (byte(pos + 1) & 0x3F) << 6 | (byte(pos + 2) & 0x3F);
  }
  num_bytes = 4;
  return (lead & 0x07) << 18 | (byte(pos + 1) & 0x3F) << 12 | (byte(pos + 2) & 0x3F) << 6 |
         (byte(pos + 3) & 0x3F);
}

void AppendUtf8(uint32_t code_point, std::string& out);

bool IsAscii(std::string_view text);
bool IsValidUtf8(std::string_view text);

// Appends `text` with every invalid sequence replaced by U+FFFD. With `keep_incomplete`, an
// incomplete sequence at the very end (at most 3 bytes) is not appended. Returns the number of
// bytes consumed.
size_t AppendSanitized(std::string_view text, bool keep_incomplete, std::string& out);

}  // namespace banyan
