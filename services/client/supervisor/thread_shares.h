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
// the experts, which stream most of the bytes; at least one each. A trunk on a GPU computes there:
// one thread of it is awake while the experts are, and they get all CPUs but one. (On 16 CPUs with
// an int8 pool a token took 19.3 ms with 15 threads, 23.5 with 16.)
ThreadShares ShareThreads(int32_t num_cpus, int32_t num_experts, bool trunk_on_gpu);

}  // namespace banyan::client
