#include "common/tokenizer/utf8.h"

#include <cstring>

namespace banyan {

DecodedCharacter DecodeCharacter(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t lead = byte(pos);
  if (lead < 0x80) return {lead, 1, true, false};
  int32_t length = 0;
  uint32_t lowest = 0x80;  // bounds of the second byte: no overlong forms, surrogates, > U+10FFFF
  uint32_t highest = 0xBF;
  uint32_t code_point = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    code_point = lead & 0x0F;
    if (lead == 0xE0) lowest = 0xA0;
    if (lead == 0xED) highest = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    code_point = lead & 0x07;
    if (lead == 0xF0) lowest = 0x90;
    if (lead == 0xF4) highest = 0x8F;
  } else {
    return {0xFFFD, 1, false, false};
  }
  for (int32_t i = 1; i < length; ++i) {
    if (pos + i >= text.size()) return {0xFFFD, i, false, true};
    const uint32_t next = byte(pos + i);
    if (next < lowest || next > highest) return {0xFFFD, i, false, false};
    code_point = code_point << 6 | (next & 0x3F);
    lowest = 0x80;
    highest = 0xBF;
  }
  return {code_point, length, true, false};
}

void AppendUtf8(uint32_t code_point, std::string& out) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

namespace {

// The first byte at or after `pos` that is not ASCII.
size_t SkipAscii(std::string_view text, size_t pos) {
  while (pos + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + pos, 8);
    if ((word & 0x8080808080808080u) != 0) break;
    pos += 8;
  }
  while (pos < text.size() && static_cast<uint8_t>(text[pos]) < 0x80) ++pos;
  return pos;
}

}  // namespace

bool IsAscii(std::string_view text) { return SkipAscii(text, 0) == text.size(); }

bool IsValidUtf8(std::string_view text) {
  for (size_t pos = SkipAscii(text, 0); pos < text.size(); pos = SkipAscii(text, pos)) {
    const DecodedCharacter c = DecodeCharacter(text, pos);
    if (!c.valid) return false;
    pos += c.num_bytes;
  }
  return true;
}

size_t AppendSanitized(std::string_view text, bool keep_incomplete, std::string& out) {
  size_t begin = 0;  // of the valid run not yet appended
  for (size_t pos = SkipAscii(text, 0); pos < text.size(); pos = SkipAscii(text, pos)) {
    const DecodedCharacter c = DecodeCharacter(text, pos);
    if (!c.valid) {
      out.append(text.substr(begin, pos - begin));
      if (c.incomplete && keep_incomplete) return pos;
      out.append(kReplacementCharacter);
      begin = pos + c.num_bytes;
    }
    pos += c.num_bytes;
  }
  out.append(text.substr(begin));
  return text.size();
}

}  // namespace banyan
