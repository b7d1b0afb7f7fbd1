// Where the repository's test data lies: $BANYAN_TEST_SOURCE_DIR where a test runs on another
// machine (tests/gpu/bundle.sh), else the tree that it was built from.
#pragma once

#include <cstdlib>
#include <string>

namespace banyan::test {

inline std::string SourceDir() {
  const char* const elsewhere = std::getenv("BANYAN_TEST_SOURCE_DIR");
  return elsewhere != nullptr ? elsewhere : BANYAN_SOURCE_DIR;
}

}  // namespace banyan::test
