// The byte-level alphabet of GPT-2 style vocabularies: each byte as one printable character.
// Bytes 0x21-0x7E, 0xA1-0xAC, 0xAE-0xFF stand for themselves; the other 68, in ascending order, are
// U+0100..U+0143. Source: tokenizer spec section 3.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace banyan {

// The byte a character of the alphabet stands for; -1 when it is not in the alphabet.
int32_t ByteOfAlphabetCharacter(uint32_t code_point);

// Appends the bytes that `token` (valid UTF-8) spells. False, and nothing sensible appended, at a
// character outside the alphabet.
bool AppendAlphabetBytes(std::string_view token, std::string& bytes);

}  // namespace banyan
