// A build with a sanitizer is ten to fifty times slower. Suites that take the same code through
// many inputs take every eighth of them there: what each input gives is checked, figures of all of
// them are those of the other builds.
#pragma once

#include <cstddef>

namespace banyan::test {

inline constexpr bool kSanitized = BANYAN_SANITIZED;
inline constexpr size_t kInputStep = kSanitized ? 8 : 1;

}  // namespace banyan::test
