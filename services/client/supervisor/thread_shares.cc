#include "services/client/supervisor/thread_shares.h"

#include <algorithm>

#include "common/base/check.h"

namespace banyan::client {

ThreadShares ShareThreads(int32_t num_cpus, int32_t num_experts, bool trunk_on_gpu) {
  CHECK(num_experts >= 1);
  ThreadShares shares;
  shares.trunk = std::max(1, std::min(num_cpus / 4, num_cpus - num_experts));
  shares.expert = std::max(1, (num_cpus - (trunk_on_gpu ? 1 : shares.trunk)) / num_experts);
  return shares;
}

}  // namespace banyan::client
