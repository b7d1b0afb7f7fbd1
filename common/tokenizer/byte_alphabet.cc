#include "common/tokenizer/byte_alphabet.h"

#include <array>

#include "common/tokenizer/utf8.h"

namespace banyan {
namespace {

constexpr int32_t kAlphabetEnd = 0x144;

constexpr std::array<int16_t, kAlphabetEnd> MakeTable() {
  std::array<int16_t, kAlphabetEnd> table{};
  for (auto& entry : table) entry = -1;
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                        (byte >= 0xAE && byte <= 0xFF);
    table[itself ? byte : next++] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr std::array<int16_t, kAlphabetEnd> kTable = MakeTable();

}  // namespace

int32_t ByteOfAlphabetCharacter(uint32_t code_point) {
  return code_point < kAlphabetEnd ? kTable[code_point] : -1;
}

bool AppendAlphabetBytes(std::string_view token, std::string& bytes) {
  for (size_t pos = 0; pos < token.size();) {
    int32_t num_bytes;
    const int32_t byte = ByteOfAlphabetCharacter(DecodeValid(token, pos, num_bytes));
    if (byte < 0) return false;
    bytes.push_back(static_cast<char>(byte));
    pos += num_bytes;
  }
  return true;
}

}  // namespace banyan
