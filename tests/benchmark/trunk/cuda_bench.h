// The parts of cuda_bench and what they share.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/check.h"

namespace banyan::trunk {

// Seconds.
inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A benchmark ends at the first error, with its words.
inline void CheckOk(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  CHECK(status.ok());
}

template <typename T>
T ValueOf(absl::StatusOr<T> value) {
  CheckOk(value.status());
  return *std::move(value);
}

enum class OpsKind { kAll, kLinear, kDelta, kTop };

// Single operations. `copy_gbps`: what shares are of, 1e9 bytes read and written a second.
void BenchmarkOps(OpsKind kind, double copy_gbps);

// Experts of long prompts, with weights from the host's memory: milliseconds of a layer's.
void BenchmarkExperts();

enum class StepKind { kAll, kFew, kParallel, kHalves, kSmall, kTimeline };

// Whole steps. kFew: a handful of steps of each kind, for a profiler. kTimeline: decoding, kernel
// by kernel (kernel_timeline.h). Random weights are written under `directory`, and removed.
void BenchmarkSteps(const std::string& directory, StepKind kind);

}  // namespace banyan::trunk
