#include "common/tokenizer/jinja_strings.h"

#include <cstring>

#include "common/tokenizer/unicode_tables.h"
#include "common/tokenizer/utf8.h"

namespace banyan::jinja {
namespace {

// str.splitlines: LF, VT, FF, CR, FS, GS, RS, NEL, LS, PS.
bool IsLineBreak(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

size_t FindText(std::string_view haystack, std::string_view needle, size_t pos) {
  if (pos > haystack.size()) return std::string_view::npos;
  if (needle.empty()) return pos;
  const void* found =
      memmem(haystack.data() + pos, haystack.size() - pos, needle.data(), needle.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - haystack.data());
}

size_t CountCharacters(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

std::vector<size_t> CharacterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(text.size());
  return offsets;
}

JinjaText Strip(const JinjaText& text, const std::string_view* chars, bool left, bool right) {
  const std::string_view bytes = text.bytes();
  const auto strips = [&](size_t begin, int32_t& length) {
    const uint32_t code_point = DecodeValid(bytes, begin, length);
    if (chars == nullptr) return IsPythonSpace(code_point);
    return FindText(*chars, bytes.substr(begin, length), 0) != std::string_view::npos;
  };
  size_t begin = 0;
  size_t end = bytes.size();
  int32_t length;
  while (left && begin < end && strips(begin, length)) begin += length;
  while (right && end > begin) {
    size_t last = end - 1;
    while ((static_cast<uint8_t>(bytes[last]) & 0xC0) == 0x80) --last;
    if (!strips(last, length)) break;
    end = last;
  }
  return text.Substr(begin, end);
}

std::vector<JinjaText> Split(const JinjaText& text, std::string_view separator,
                             int64_t max_splits) {
  std::vector<JinjaText> parts;
  size_t begin = 0;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t found = FindText(text.bytes(), separator, begin);
    if (found == std::string_view::npos) break;
    parts.push_back(text.Substr(begin, found));
    begin = found + separator.size();
  }
  parts.push_back(text.Substr(begin, text.size()));
  return parts;
}

std::vector<JinjaText> SplitWhitespace(const JinjaText& text, int64_t max_splits) {
  std::vector<JinjaText> parts;
  const std::string_view bytes = text.bytes();
  size_t pos = 0;
  const auto skip = [&](bool spaces) {
    int32_t length;
    while (pos < bytes.size() && IsPythonSpace(DecodeValid(bytes, pos, length)) == spaces) {
      pos += length;
    }
  };
  for (skip(true); pos < bytes.size(); skip(true)) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
      parts.push_back(text.Substr(pos, bytes.size()));
      break;
    }
    const size_t begin = pos;
    skip(false);
    parts.push_back(text.Substr(begin, pos));
  }
  return parts;
}

std::vector<JinjaText> SplitLines(const JinjaText& text) {
  std::vector<JinjaText> lines;
  const std::string_view bytes = text.bytes();
  size_t begin = 0;
  for (size_t pos = 0; pos < bytes.size();) {
    int32_t length;
    const uint32_t c = DecodeValid(bytes, pos, length);
    if (!IsLineBreak(c)) {
      pos += length;
      continue;
    }
    lines.push_back(text.Substr(begin, pos));
    pos += length;
    if (c == '\r' && pos < bytes.size() && bytes[pos] == '\n') ++pos;
    begin = pos;
  }
  if (begin < bytes.size()) lines.push_back(text.Substr(begin, bytes.size()));
  return lines;
}

JinjaText Replace(const JinjaText& text, std::string_view old_text, const JinjaText& new_text,
                  int64_t max_count) {
  JinjaText out;
  size_t begin = 0;
  for (int64_t count = 0; max_count < 0 || count < max_count; ++count) {
    const size_t found = FindText(text.bytes(), old_text, begin);
    if (found == std::string_view::npos) break;
    out.AppendPart(text, begin, found);
    out.Append(new_text);
    begin = found + old_text.size();
  }
  out.AppendPart(text, begin, text.size());
  return out;
}

JinjaText MapCase(const JinjaText& text, CaseMapping mapping) {
  JinjaText out;
  size_t begin = 0;
  const std::string_view bytes = text.bytes();
  for (const JinjaText::Run& run : text.runs()) {
    std::string_view part = bytes.substr(begin, run.end - begin);
    if (mapping == CaseMapping::kCapitalize && begin == 0) {
      int32_t length;
      DecodeValid(part, 0, length);
      out.Append(ToUpperUtf8(part.substr(0, length)), run.user_text);
      part.remove_prefix(length);
    }
    const bool upper = mapping == CaseMapping::kUpper;
    out.Append(upper ? ToUpperUtf8(part) : ToLowerUtf8(part), run.user_text);
    begin = run.end;
  }
  return out;
}

}  // namespace banyan::jinja
