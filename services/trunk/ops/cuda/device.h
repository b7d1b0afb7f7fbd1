// The GPU that a process uses: found, checked against what our kernels need, described.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace banyan::trunk::cuda {

struct DeviceFacts {
  int ordinal = 0;
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  int num_sms = 0;
  int32_t shared_bytes = 0;  // that a CTA may have
  bool clusters = false;     // of CTAs
  bool hopper = false;       // runs linear_hopper.h, and this program has it
  int64_t l2_bytes = 0;      // second-level cache
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;  // after the context was made
};

// Makes the device current for the calling thread and loads the kernels. Errors say what is
// missing: kFailedPrecondition: no driver, a driver older than the CUDA that we were built with, no
// device, or a device that our kernels do not run on; kInternal: anything else.
absl::StatusOr<DeviceFacts> OpenDevice(int ordinal);

// Whether OpenDevice could find any device at all; says nothing about its fitness.
bool HasDevice();
int DeviceCount();

}  // namespace banyan::trunk::cuda
