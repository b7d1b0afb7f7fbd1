#include "common/base/strings.h"
#include "services/trunk/ops/collective/nccl.h"

namespace banyan::trunk {

absl::StatusOr<std::unique_ptr<CollectiveGroup>> CreateNcclGroup(int32_t size,
                                                                 const NcclOptions& /*options*/) {
  return StatusF(absl::StatusCode::kUnimplemented,
                 "--tensor_parallel {}: this binary was built without NCCL (nccl.h), which joins "
                 "several GPUs",
                 size);
}

}  // namespace banyan::trunk
