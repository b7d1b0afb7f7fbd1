// A backend for tests of single operations: takes the test's own arrays where operations expect
// device memory, brings them over before each operation and back after it. Slow, and the same test
// runs on every backend. Errors abort with the status.
#pragma once

#include <cstdint>
#include <memory>

#include "services/trunk/ops/ops.h"

namespace banyan::test {

// Wraps `inner`, which must not compute on host memory itself. Reserve may be left out: a first
// step then reserves for 4200 rows without attention or DeltaNet.
std::unique_ptr<trunk::Backend> MakeHostArrayBackend(std::unique_ptr<trunk::Backend> inner);

}  // namespace banyan::test
