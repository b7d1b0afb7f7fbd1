// Mapped weights into memory with all threads, before anybody waits for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "common/parallel/worker_pool.h"

namespace banyan {

// Every page of `ranges`, parts of live mappings, is resident and in the page table afterwards, as
// long as the kernel keeps it. `progress` is told the bytes done, several times a second at disk
// speed, on the calling thread, which owns the pool; false ends the work with kCancelled.
absl::Status ReadPages(std::span<const std::span<const std::byte>> ranges, WorkerPool& pool,
                       absl::FunctionRef<bool(uint64_t bytes_done)> progress);

}  // namespace banyan
