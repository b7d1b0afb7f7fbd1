// The version of this build, of all binaries and protocols alike.
#pragma once

#include <string_view>

namespace banyan {

std::string_view Version();   // "0.1.0"
std::string_view Compiler();  // "gcc 12.2.0"

}  // namespace banyan
