#include "tests/benchmark/trunk/kernel_timeline.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "services/trunk/ops/cuda/kernel_stamps.h"
#include "tests/benchmark/trunk/cuda_bench.h"

namespace banyan::trunk {
namespace {

// One run of a kernel. Times in nanoseconds.
struct Run {
  std::string name;
  std::set<uint32_t> ctas;
  uint64_t first_started = UINT64_MAX;
  uint64_t last_started = 0;
  uint64_t waited = UINT64_MAX;  // the first CTA's wait was over
};

std::string FileOf(const std::string& path) {
  const size_t from = path.rfind('/') + 1;
  return path.substr(from, path.rfind('.') - from);
}

// Kernels of a file and a shape follow each other: a CTA that comes again is of the next run.
std::vector<Run> RunsOf(const cuda::StampedFile& file) {
  std::vector<cuda::KernelStamp> stamps = file.read();
  std::sort(stamps.begin(), stamps.end(),
            [](const auto& a, const auto& b) { return a.started < b.started; });
  std::vector<Run> runs;
  std::map<std::tuple<uint32_t, uint32_t>, size_t> open;
  for (const cuda::KernelStamp& stamp : stamps) {
    if (stamp.waited == 0) continue;
    const auto [at, added] = open.try_emplace({stamp.ctas, stamp.threads}, runs.size());
    if (!added && runs[at->second].ctas.count(stamp.cta) > 0) at->second = runs.size();
    if (at->second == runs.size()) {
      runs.emplace_back();
      runs.back().name = FileOf(file.name) + ", " + std::to_string(stamp.ctas) + " x " +
                         std::to_string(stamp.threads);
    }
    Run& run = runs[at->second];
    run.ctas.insert(stamp.cta);
    run.first_started = std::min(run.first_started, stamp.started);
    run.last_started = std::max(run.last_started, stamp.started);
    run.waited = std::min(run.waited, stamp.waited);
  }
  return runs;
}

double Microseconds(uint64_t from, uint64_t to) {
  return static_cast<double>(static_cast<int64_t>(to - from)) * 1e-3;  // may be less than nothing
}

void PrintKernel(const std::string& name, double time, double early, double late) {
  std::printf("  %-28s %7.2f  %7.2f to %5.2f\n", name.c_str(), time, early, late);
}

}  // namespace

bool HasKernelStamps() { return !cuda::StampedFiles().empty(); }

void ForgetKernels() {
  for (const cuda::StampedFile& file : cuda::StampedFiles()) file.forget();
}

void PrintKernels() {
  std::vector<Run> runs;
  for (const cuda::StampedFile& file : cuda::StampedFiles()) {
    const std::vector<Run> some = RunsOf(file);
    runs.insert(runs.end(), some.begin(), some.end());
  }
  std::sort(runs.begin(), runs.end(),
            [](const Run& a, const Run& b) { return a.waited < b.waited; });
  // Layers, by the kernels that they have.
  std::map<std::vector<std::string>, std::vector<size_t>> layers;
  std::vector<std::string> kernels;
  size_t first = runs.size();
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].name.rfind("router_topk", 0) == 0) {
      if (first < i) layers[kernels].push_back(first);
      first = i;
      kernels.clear();
    }
    kernels.push_back(runs[i].name);
  }
  // What comes after them.
  for (size_t i = first; i + 1 < runs.size(); ++i) {
    PrintKernel(runs[i].name, Microseconds(runs[i].waited, runs[i + 1].waited),
                Microseconds(runs[i].first_started, runs[i].waited),
                Microseconds(runs[i].last_started, runs[i].waited));
  }
  for (const auto& [names, begins] : layers) {
    std::printf("%zu layers; us of each kernel's time, and from its CTAs' starts to it:\n",
                begins.size());
    for (size_t i = 0; i < names.size(); ++i) {
      std::vector<double> time;
      std::vector<double> early;
      std::vector<double> late;
      for (const size_t begin : begins) {
        const Run& run = runs[begin + i];
        time.push_back(Microseconds(run.waited, runs[begin + i + 1].waited));
        early.push_back(Microseconds(run.first_started, run.waited));
        late.push_back(Microseconds(run.last_started, run.waited));
      }
      PrintKernel(names[i], Median(time), Median(early), Median(late));
    }
  }
}

}  // namespace banyan::trunk
