#include "common/tokenizer/unicode_tables.h"

#include <unicode/bytestream.h>
#include <unicode/casemap.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <memory>

#include "common/base/check.h"
#include "common/tokenizer/utf8.h"

namespace banyan {
namespace {

constexpr int32_t kNumCodePoints = 0x110000;

UBool FillRange(const void* context, UChar32 start, UChar32 limit, UCharCategory category) {
  auto* table = static_cast<CharClass*>(const_cast<void*>(context));
  const uint32_t mask = U_MASK(category);
  CharClass value = CharClass::kOther;
  if ((mask & U_GC_L_MASK) != 0) value = CharClass::kLetter;
  if ((mask & U_GC_N_MASK) != 0) value = CharClass::kNumber;
  for (UChar32 c = start; c < limit && c < kNumCodePoints; ++c) table[c] = value;
  return true;
}

std::unique_ptr<CharClass[]> MakeTable() {
  auto table = std::make_unique<CharClass[]>(kNumCodePoints);
  u_enumCharTypes(&FillRange, table.get());
  // White_Space; stable since Unicode 6.3.
  const auto mark = [&](int32_t first, int32_t last) {
    for (int32_t c = first; c <= last; ++c) table[c] = CharClass::kSpace;
  };
  mark(0x09, 0x0D);
  mark(0x20, 0x20);
  mark(0x85, 0x85);
  mark(0xA0, 0xA0);
  mark(0x1680, 0x1680);
  mark(0x2000, 0x200A);
  mark(0x2028, 0x2029);
  mark(0x202F, 0x202F);
  mark(0x205F, 0x205F);
  mark(0x3000, 0x3000);
  table['\r'] = CharClass::kNewline;
  table['\n'] = CharClass::kNewline;
  return table;
}

icu::StringPiece Piece(std::string_view text) {
  return icu::StringPiece(text.data(), static_cast<int32_t>(text.size()));
}

}  // namespace

const CharClass* CharClassTable() {
  static const std::unique_ptr<CharClass[]> table = MakeTable();
  return table.get();
}

std::string_view NormalizeNfc(std::string_view text, std::string& buffer) {
  if (IsAscii(text)) return text;
  // ICU counts in int32; longer texts cannot come in through any interface of ours.
  CHECK(text.size() < size_t{1} << 30);
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(error);
  CHECK(U_SUCCESS(error));
  if (nfc->isNormalizedUTF8(Piece(text), error) && U_SUCCESS(error)) return text;
  error = U_ZERO_ERROR;
  buffer.clear();
  icu::StringByteSink<std::string> sink(&buffer, static_cast<int32_t>(text.size()));
  nfc->normalizeUTF8(0, Piece(text), sink, nullptr, error);
  CHECK(U_SUCCESS(error));
  return buffer;
}

bool IsPythonSpace(uint32_t code_point) {
  if (code_point >= 0x1C && code_point <= 0x1F) return true;
  const CharClass value = CharClassTable()[code_point];
  return value == CharClass::kSpace || value == CharClass::kNewline;
}

bool IsPythonPrintable(uint32_t code_point) {
  if (code_point == ' ') return true;
  const uint32_t mask = U_GET_GC_MASK(static_cast<UChar32>(code_point));
  return (mask & (U_GC_C_MASK | U_GC_Z_MASK)) == 0;
}

std::string ToUpperUtf8(std::string_view text) {
  std::string out;
  UErrorCode error = U_ZERO_ERROR;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  icu::CaseMap::utf8ToUpper("", 0, Piece(text), sink, nullptr, error);
  CHECK(U_SUCCESS(error));
  return out;
}

std::string ToLowerUtf8(std::string_view text) {
  std::string out;
  UErrorCode error = U_ZERO_ERROR;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  icu::CaseMap::utf8ToLower("", 0, Piece(text), sink, nullptr, error);
  CHECK(U_SUCCESS(error));
  return out;
}

}  // namespace banyan
