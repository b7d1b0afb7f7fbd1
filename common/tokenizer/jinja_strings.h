// Python's string methods on texts that remember where they come from. Positions are bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/tokenizer/jinja_text.h"

namespace banyan::jinja {

// Linear time, whatever the needle. npos when it is not there.
size_t FindText(std::string_view haystack, std::string_view needle, size_t pos);
size_t CountCharacters(std::string_view text);
// The byte position of every character, and the size at the end.
std::vector<size_t> CharacterOffsets(std::string_view text);

// Removes characters of `chars` from the sides asked for; nullptr: white space.
JinjaText Strip(const JinjaText& text, const std::string_view* chars, bool left, bool right);
// At `separator`, which is not empty; max_splits < 0: no limit.
std::vector<JinjaText> Split(const JinjaText& text, std::string_view separator, int64_t max_splits);
// At runs of white space; no empty parts.
std::vector<JinjaText> SplitWhitespace(const JinjaText& text, int64_t max_splits);
std::vector<JinjaText> SplitLines(const JinjaText& text);
// Where `old_text` is not empty.
JinjaText Replace(const JinjaText& text, std::string_view old_text, const JinjaText& new_text,
                  int64_t max_count);
enum class CaseMapping : uint8_t { kUpper, kLower, kCapitalize };
JinjaText MapCase(const JinjaText& text, CaseMapping mapping);

}  // namespace banyan::jinja
