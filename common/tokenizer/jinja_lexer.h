// A template's source as tokens, white space control already applied: trim_blocks and lstrip_blocks
// on, `-` and `+` signs, the last newline of the source dropped. Rules: docs/formats/tokenizer.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan::jinja {

enum class TokenKind : uint8_t {
  kData,        // text between tags
  kBlockBegin,  // {%
  kBlockEnd,    // %}
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kName,
  kString,  // text: its value, escapes undone
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int32_t line;  // from 1
};

// The last token is kEnd. kInvalidArgument: "line 3: ...".
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace banyan::jinja
