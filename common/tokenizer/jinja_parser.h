// Template source to a tree. Everything the interpreter cannot do is found here, by name and line,
// and not only when a conversation happens to reach it.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "common/tokenizer/jinja_ast.h"

namespace banyan::jinja {

// `source` is valid UTF-8. kInvalidArgument (syntax) or kUnimplemented: "line 3: ...".
absl::StatusOr<Block> Parse(std::string_view source);

}  // namespace banyan::jinja
