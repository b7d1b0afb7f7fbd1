// Zeroed pages straight from the kernel: large buffers cost nothing until they are touched.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan::trunk::cpu {

// Owns every block it handed out.
class HostMemory {
 public:
  HostMemory() = default;
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Page-aligned, zeroed; kResourceExhausted with the size. 0 bytes give a valid pointer.
  absl::StatusOr<std::byte*> Allocate(size_t bytes);

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  std::vector<Block> blocks_;
};

}  // namespace banyan::trunk::cpu
