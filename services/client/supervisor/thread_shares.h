// How one machine's CPUs are shared out among a trunk and its local experts.
#pragma once

#include <cstdint>

namespace banyan::client {

struct ThreadShares {
  int32_t trunk = 1;
  int32_t expert = 1;  // of each
};

// Trunk and experts take turns inside a layer and poll while they wait, so the sum stays within
// `num_cpus` where there are enough: at most a quarter for the trunk, the rest in equal parts for
// the experts, which stream most of the bytes; at least one each.
ThreadShares ShareThreads(int32_t num_cpus, int32_t num_experts);

}  // namespace banyan::client
