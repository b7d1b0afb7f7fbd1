#include "common/tokenizer/jinja_lexer.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/unicode_tables.h"
#include "common/tokenizer/utf8.h"

namespace banyan::jinja {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c); }

// CR LF and CR become LF; one newline at the end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out.push_back('\n');
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

size_t SkipSpace(std::string_view text, size_t pos) {
  while (pos < text.size()) {
    int32_t num_bytes;
    if (!IsPythonSpace(DecodeValid(text, pos, num_bytes))) break;
    pos += num_bytes;
  }
  return pos;
}

// Without the white space at its end.
std::string_view TrimEnd(std::string_view text) {
  size_t end = 0;
  for (size_t pos = 0; pos < text.size();) {
    int32_t num_bytes;
    const bool space = IsPythonSpace(DecodeValid(text, pos, num_bytes));
    pos += num_bytes;
    if (!space) end = pos;
  }
  return text.substr(0, end);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) {
      const size_t tag = FindTag();
      AddData(tag);
      if (tag == source_.size()) break;
      const char kind = source_[tag + 1];
      Advance(tag + 2);
      if (pos_ < source_.size() && (source_[pos_] == '-' || source_[pos_] == '+'))
        Advance(pos_ + 1);
      if (kind == '#') {
        RETURN_IF_ERROR(SkipComment());
      } else {
        const bool block = kind == '%';
        Add(block ? TokenKind::kBlockBegin : TokenKind::kPrintBegin, "");
        RETURN_IF_ERROR(LexTag(block));
      }
      line_starting_ = pos_ > 0 && source_[pos_ - 1] == '\n';
    }
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  template <typename... Args>
  absl::Status Error(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgumentF("line {}: {}", line_, fmt::format(format, std::forward<Args>(args)...));
  }

  void Advance(size_t pos) {
    line_ += static_cast<int32_t>(std::count(source_.begin() + static_cast<ptrdiff_t>(pos_),
                                             source_.begin() + static_cast<ptrdiff_t>(pos), '\n'));
    pos_ = pos;
  }

  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  // Where the next {% {{ {# is; the end of the source when there is none.
  size_t FindTag() const {
    for (size_t i = source_.find('{', pos_); i != std::string_view::npos;
         i = source_.find('{', i + 1)) {
      if (i + 1 < source_.size() &&
          (source_[i + 1] == '%' || source_[i + 1] == '{' || source_[i + 1] == '#')) {
        return i;
      }
    }
    return source_.size();
  }

  void AddData(size_t tag) {
    std::string_view text = source_.substr(pos_, tag - pos_);
    if (tag < source_.size()) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      if (sign == '-') {
        text = TrimEnd(text);
      } else if (sign != '+' && source_[tag + 1] != '{') {
        const size_t newline = text.rfind('\n');
        const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
        if ((line_begin > 0 || line_starting_) && SkipSpace(text, line_begin) == text.size()) {
          text = text.substr(0, line_begin);
        }
      }
    }
    if (!text.empty()) Add(TokenKind::kData, std::string(text));
    Advance(tag);
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string_view::npos) return Error("comment without an end, expected #}}");
    const char sign = end > pos_ ? source_[end - 1] : ' ';
    Advance(AfterTag(end + 2, sign, /*trim_newline=*/true));
    return absl::OkStatus();
  }

  size_t AfterTag(size_t pos, char sign, bool trim_newline) const {
    if (sign == '-') return SkipSpace(source_, pos);
    if (sign != '+' && trim_newline && pos < source_.size() && source_[pos] == '\n') return pos + 1;
    return pos;
  }

  // The end of a tag at pos_, if one is here: what follows it, else 0.
  size_t TagEnd(bool block) const {
    const std::string_view rest = source_.substr(pos_);
    const std::string_view end = block ? "%}" : "}}";
    if (rest.substr(0, 2) == end) return AfterTag(pos_ + 2, ' ', block);
    if (rest.substr(1, 2) == end && (rest[0] == '-' || (block && rest[0] == '+'))) {
      return AfterTag(pos_ + 3, rest[0], block);
    }
    return 0;
  }

  absl::Status LexTag(bool block) {
    std::string open;  // brackets not closed yet
    while (true) {
      Advance(SkipSpace(source_, pos_));
      if (pos_ >= source_.size())
        return Error("tag without an end, expected {}", block ? "%}" : "}}");
      if (open.empty()) {
        if (const size_t after = TagEnd(block); after > 0) {
          Add(block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd, "");
          Advance(after);
          return absl::OkStatus();
        }
      }
      RETURN_IF_ERROR(LexToken(open));
    }
  }

  absl::Status LexToken(std::string& open) {
    const char c = source_[pos_];
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < source_.size() && IsNamePart(source_[end])) ++end;
      Add(TokenKind::kName, std::string(source_.substr(pos_, end - pos_)));
      Advance(end);
      return absl::OkStatus();
    }
    if (IsDigit(c)) return LexNumber();
    if (c == '"' || c == '\'') return LexString(c);
    return LexOperator(open);
  }

  absl::Status LexNumber() {
    size_t end = pos_;
    const auto digits = [&] {
      while (end < source_.size() && IsDigit(source_[end])) ++end;
    };
    const auto at = [&](size_t i) { return i < source_.size() ? source_[i] : '\0'; };
    digits();
    TokenKind kind = TokenKind::kInteger;
    // In `x.0.1` the number after the first dot is an index, never the start of a fraction.
    const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
    if (!after_dot && at(end) == '.' && IsDigit(at(end + 1))) {
      kind = TokenKind::kFloat;
      ++end;
      digits();
    }
    if (!after_dot && (at(end) == 'e' || at(end) == 'E')) {
      const size_t sign = at(end + 1) == '+' || at(end + 1) == '-' ? 1 : 0;
      if (IsDigit(at(end + 1 + sign))) {
        kind = TokenKind::kFloat;
        end += 1 + sign;
        digits();
      }
    }
    std::string text(source_.substr(pos_, end - pos_));
    if (IsNamePart(at(end)) || (kind == TokenKind::kInteger && text.size() > 1 && text[0] == '0')) {
      return Error("number {}{} is not supported, expected a decimal one", text,
                   IsNamePart(at(end)) ? std::string(1, at(end)) + "..." : "");
    }
    Add(kind, std::move(text));
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    std::string value;
    size_t i = pos_ + 1;
    while (true) {
      if (i >= source_.size()) return Error("string without an end");
      if (source_[i] == quote) break;
      if (source_[i] != '\\') {
        value.push_back(source_[i++]);
        continue;
      }
      if (i + 1 >= source_.size()) return Error("string without an end");
      RETURN_IF_ERROR(LexEscape(i, value));
    }
    Add(TokenKind::kString, std::move(value));
    Advance(i + 1);
    return absl::OkStatus();
  }

  // The escape at `i`, a backslash with something after it; moves `i` behind it.
  absl::Status LexEscape(size_t& i, std::string& value) {
    const char c = source_[i + 1];
    constexpr std::string_view kNames = "\n\\'\"abfnrtv";
    constexpr std::string_view kValues{"\0\\'\"\a\b\f\n\r\t\v", 11};
    const size_t known = kNames.find(c);
    if (known != std::string_view::npos) {
      if (c != '\n') value.push_back(kValues[known]);
      i += 2;
      return absl::OkStatus();
    }
    size_t max_digits = 0;
    uint32_t base = 16;
    size_t begin = i + 2;
    if (c == 'x') max_digits = 2;
    if (c == 'u') max_digits = 4;
    if (c == 'U') max_digits = 8;
    if (c >= '0' && c <= '7') {
      max_digits = 3;
      base = 8;
      begin = i + 1;
    }
    if (max_digits == 0) {  // not an escape: both characters stay
      value.push_back('\\');
      ++i;
      return absl::OkStatus();
    }
    uint32_t code_point = 0;
    size_t end = begin;
    for (; end < begin + max_digits && end < source_.size(); ++end) {
      const char d = source_[end];
      uint32_t digit = 99;
      if (IsDigit(d)) digit = static_cast<uint32_t>(d - '0');
      if (d >= 'a' && d <= 'f') digit = static_cast<uint32_t>(d - 'a' + 10);
      if (d >= 'A' && d <= 'F') digit = static_cast<uint32_t>(d - 'A' + 10);
      if (digit >= base) break;
      code_point = code_point * base + digit;
      if (code_point > 0x10FFFF) break;
    }
    const bool short_number = base == 16 && end != begin + max_digits;
    if (short_number || code_point > 0x10FFFF || (code_point >= 0xD800 && code_point < 0xE000)) {
      return Error("escape \\{} does not name a character", c);
    }
    AppendUtf8(code_point, value);
    i = end;
    return absl::OkStatus();
  }

  absl::Status LexOperator(std::string& open) {
    const std::string_view rest = source_.substr(pos_);
    for (const std::string_view two : {"//", "**", "==", "!=", "<=", ">="}) {
      if (rest.substr(0, 2) == two) {
        Add(TokenKind::kOperator, std::string(two));
        Advance(pos_ + 2);
        return absl::OkStatus();
      }
    }
    const char c = rest[0];
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      const DecodedCharacter character = DecodeCharacter(source_, pos_);
      return Error("unexpected character '{}'", source_.substr(pos_, character.num_bytes));
    }
    if (c == '(' || c == '[' || c == '{') open.push_back(c);
    if (c == ')' || c == ']' || c == '}') {
      const char expected = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != expected) return Error("unexpected '{}'", c);
      open.pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    Advance(pos_ + 1);
    return absl::OkStatus();
  }

  const std::string_view source_;
  size_t pos_ = 0;
  int32_t line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace banyan::jinja
