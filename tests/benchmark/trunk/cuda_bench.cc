// The CUDA backend at the full model's geometry beside what this card can do at best: bytes per
// second of a device-to-device copy (read and written), measured at start.
//
//   cuda_bench [ops] [linear] [delta] [top] [experts] [step] [short] [parallel] [halves] [small]
//              [--directory=DIR]
//     ops    each operation: microseconds, GB/s of what must be read and written, share of the
//            copy's
//     linear  of these, products
//     delta  of these, convolution and DeltaNet
//     top    of these, what becomes of a row of logits
//     experts  320 of a layer's 512 on the device, weights from the host, by rows and pool format
//     step   the whole trunk with experts that answer at once with zeros: milliseconds a decode
//            step by batch and context, and prefill, choices included. Writes 4.7 GB of random
//            weights to DIR (/dev/shm) and removes them.
//     short  few of these steps
//     parallel  a few of these steps on one GPU, on two, four and eight, as many as there are.
//     halves  prompts undivided and in two halves, 12 layers, with experts that take their time:
//            one call after the other, 12 ms and 12 us a row (docs/adr/two-halves.md).
//     small  those of `step` that take as little memory as it goes, and how much it is
// Times are medians of repetitions, each many calls queued together; weights go round a set larger
// than the second-level cache.
#include "tests/benchmark/trunk/cuda_bench.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/base/check.h"
#include "services/trunk/ops/cuda/device.h"
#include "services/trunk/ops/cuda/gpu_usage.h"
#include "tests/benchmark/trunk/kernel_timeline.h"

namespace banyan::trunk {
namespace {

double MeasureCopy() {
  constexpr size_t kBytes = size_t{1} << 30;
  void* from = nullptr;
  void* to = nullptr;
  CHECK(cudaMalloc(&from, kBytes) == cudaSuccess && cudaMalloc(&to, kBytes) == cudaSuccess);
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const double start = Now();
    for (int j = 0; j < 8; ++j)
      cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, nullptr);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    best = std::max(best, 8 * 2.0 * kBytes / (Now() - start) * 1e-9);
  }
  cudaFree(from);
  cudaFree(to);
  return best;
}

int Main(int argc, char** argv) {
  bool ops = false;
  bool linear = false;
  bool top = false;
  bool delta = false;
  bool experts = false;
  bool step = false;
  bool few = false;
  bool parallel = false;
  bool halves = false;
  bool small = false;
  bool timeline = false;
  std::string directory = "/dev/shm";
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "ops") {
      ops = true;
    } else if (arg == "linear") {
      linear = true;
    } else if (arg == "top") {
      top = true;
    } else if (arg == "delta") {
      delta = true;
    } else if (arg == "experts") {
      experts = true;
    } else if (arg == "step") {
      step = true;
    } else if (arg == "short") {
      few = true;
    } else if (arg == "parallel") {
      parallel = true;
    } else if (arg == "halves") {
      halves = true;
    } else if (arg == "small") {
      small = true;
    } else if (arg == "timeline") {
      timeline = true;
    } else if (arg.rfind("--directory=", 0) == 0) {
      directory = arg.substr(std::strlen("--directory="));
    } else {
      std::fprintf(stderr, "cuda_bench: unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  if (timeline && !HasKernelStamps()) {
    std::fprintf(stderr, "cuda_bench: timeline: not built with BANYAN_KERNEL_STAMPS\n");
    return 2;
  }
  const auto monitor = cuda::GpuMonitor::Open(0);
  const auto used = [&monitor] {
    if (!monitor.ok()) return 0.0;
    const auto usage = (*monitor)->Read();
    return usage.ok() ? static_cast<double>(usage->used_bytes) * 1e-9 : 0;
  };
  const double before = used();
  const absl::StatusOr<cuda::DeviceFacts> facts = cuda::OpenDevice(0);
  if (!facts.ok()) {
    std::fprintf(stderr, "%s\n", facts.status().ToString().c_str());
    return 2;
  }
  std::printf("context: %.3f GB, in use before it %.3f\n", used() - before, before);
  const double copy_gbps = MeasureCopy();
  std::printf("%s, compute capability %d.%d, %d multiprocessors; copy %.0f GB/s\n",
              facts->name.c_str(), facts->compute_major, facts->compute_minor, facts->num_sms,
              copy_gbps);
  const bool all = !(ops || linear || delta || top || experts || step || few || parallel ||
                     halves || small || timeline);
  if (ops || all) BenchmarkOps(OpsKind::kAll, copy_gbps);
  if (linear) BenchmarkOps(OpsKind::kLinear, copy_gbps);
  if (delta) BenchmarkOps(OpsKind::kDelta, copy_gbps);
  if (top) BenchmarkOps(OpsKind::kTop, copy_gbps);
  if (experts || all) BenchmarkExperts();
  if (step || all) BenchmarkSteps(directory, StepKind::kAll);
  if (few) BenchmarkSteps(directory, StepKind::kFew);
  if (parallel) BenchmarkSteps(directory, StepKind::kParallel);
  if (halves) BenchmarkSteps(directory, StepKind::kHalves);
  if (small) BenchmarkSteps(directory, StepKind::kSmall);
  if (timeline) BenchmarkSteps(directory, StepKind::kTimeline);
  return 0;
}

}  // namespace
}  // namespace banyan::trunk

int main(int argc, char** argv) { return banyan::trunk::Main(argc, argv); }
