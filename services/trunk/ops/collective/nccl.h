// A group of the GPUs of this machine, joined by NCCL. The library is opened when a group is made
// (libnccl.so.2), so that programs start where it is absent.
//
// Two GPUs: NCCL's all-reduce, since a + b is b + a whoever adds. More: its order of adding depends
// on where in an array a value lies, hence on the rows beside it; so everything is gathered
// everywhere and added in the order of ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "services/trunk/ops/collective/collective.h"

namespace banyan::trunk {

// What an AllReduce of `count` values needs in scratch, in a group of `size`; 0: nothing.
constexpr int64_t NcclScratchFloats(int32_t size, int64_t count) {
  return size <= 2 ? 0 : size * count;
}

struct NcclOptions {
  bool always_gather = false;  // with two GPUs too; scratch is then 2 * count
};

// GPUs 0 to size - 1, one for each rank; before anything is allocated on them, since NCCL's own
// buffers are. kInvalidArgument: there are fewer; kFailedPrecondition: no NCCL, by name;
// kUnimplemented: built without it; kInternal: NCCL's words.
absl::StatusOr<std::unique_ptr<CollectiveGroup>> CreateNcclGroup(int32_t size,
                                                                 const NcclOptions& options = {});

}  // namespace banyan::trunk
