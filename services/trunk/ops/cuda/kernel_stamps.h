// When CTAs started and when they had passed their wait for the kernels before, as `cuda_bench
// timeline` prints it. Kernels write that down where they are built with BANYAN_KERNEL_STAMPS
// (kernel_stamps.cuh), each file in memory of its own; else there are none.
#pragma once

#include <cstdint>
#include <vector>

namespace banyan::trunk::cuda {

// Of one CTA. Times are the device's, nanoseconds.
struct KernelStamp {
  uint64_t started = 0;
  uint64_t waited = 0;
  uint32_t ctas = 0;  // of the kernel
  uint32_t threads = 0;
  uint32_t cta = 0;
};

struct StampedFile {
  const char* name;  // with its folders
  void (*forget)();
  std::vector<KernelStamp> (*read)();  // since then
};

// Registered before main begins.
inline std::vector<StampedFile>& StampedFiles() {
  static std::vector<StampedFile> files;
  return files;
}

}  // namespace banyan::trunk::cuda
