// CHECK and DCHECK: our own broken invariants. Prints file, line and condition, then aborts.
// Anything a file, a peer or a client can cause is an absl::Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace banyan::internal {
[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}
}  // namespace banyan::internal

#define CHECK(condition)                                               \
  do {                                                                 \
    if (__builtin_expect(!(condition), 0))                             \
      ::banyan::internal::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#ifdef NDEBUG
#define DCHECK(condition)         \
  do {                            \
    if (false) (void)(condition); \
  } while (false)
#else
#define DCHECK(condition) CHECK(condition)
#endif
