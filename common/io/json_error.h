// Messages of the JSON library as part of ours.
#pragma once

#include <string>
#include <string_view>

#include "common/base/strings.h"

namespace banyan {

// "[json.exception.parse_error.101] parse error at line 1, ..." without the bracket, printable and
// of bounded length: the library quotes the offending token whole.
inline std::string JsonErrorText(std::string_view what) {
  const size_t bracket = what.find("] ");
  if (bracket != std::string_view::npos) what.remove_prefix(bracket + 2);
  return Printable(what, 240);
}

}  // namespace banyan
