#include "common/base/version.h"

namespace banyan {

std::string_view Version() { return BANYAN_VERSION; }

std::string_view Compiler() {
#ifdef __clang__
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace banyan
