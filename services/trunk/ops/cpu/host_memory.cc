#include "services/trunk/ops/cpu/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/base/strings.h"

namespace banyan::trunk::cpu {

HostMemory::~HostMemory() {
  for (const Block& block : blocks_) ::munmap(block.data, block.bytes);
}

absl::StatusOr<std::byte*> HostMemory::Allocate(size_t bytes) {
  const size_t size = std::max<size_t>(bytes, 1);
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return StatusF(absl::StatusCode::kResourceExhausted, "cannot allocate {} bytes: {}", bytes,
                   std::strerror(errno));
  }
  // A hint: fewer page faults and table walks for states and KV pages.
  constexpr size_t kHugePageBytes = size_t{2} << 20;
  if (size >= kHugePageBytes) (void)::madvise(data, size, MADV_HUGEPAGE);
  blocks_.push_back({data, size});
  return static_cast<std::byte*>(data);
}

}  // namespace banyan::trunk::cpu
