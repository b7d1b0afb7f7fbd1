// Values as text: Python's str() and json.dumps.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/tokenizer/jinja_budget.h"
#include "common/tokenizer/jinja_value.h"

namespace banyan::jinja {

// str(value): a string is itself, "" for undefined, Python's repr inside lists and dicts. Numbers,
// booleans and none are trusted text (they cannot spell a token), lists and dicts user text.
absl::StatusOr<JinjaText> ToText(const Value& value, Budget& budget);

struct JsonStyle {
  bool ensure_ascii = false;
  int32_t indent = -1;  // -1: one line, separators ", " and ": "
};
// json.dumps as transformers' chat templates have it: nothing escaped for HTML, order of keys kept.
absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, Budget& budget);

// repr(float): the shortest digits that read back the same.
std::string FormatFloat(double value);

}  // namespace banyan::jinja
