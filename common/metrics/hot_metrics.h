// Counters and histograms of the expert call, which are updated some hundred times a step. A metric
// of prometheus-cpp costs a lock or a read-modify-write and lines of memory of its own: 26 ns each
// beside the weights that pass through the caches. These have one writer at a time, who pays loads
// and stores of a line that neighbours share.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace banyan {

// Updated by one thread at a time (two at once lose updates, nothing else); read by any.
class HotCounter {
 public:
  HotCounter() = default;
  HotCounter(const HotCounter&) = delete;
  HotCounter& operator=(const HotCounter&) = delete;

  void Increment() { Increment(1); }
  void Increment(double amount);  // amount >= 0
  double Value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// As HotCounter. A reader may see an observation in the buckets that is not yet in the sum.
class alignas(64) HotHistogram {
 public:
  static constexpr size_t kMaxBounds = 24;

  // `bounds`: ascending upper bounds, 1 to kMaxBounds of them; borrowed.
  explicit HotHistogram(const std::vector<double>& bounds);
  HotHistogram(const HotHistogram&) = delete;
  HotHistogram& operator=(const HotHistogram&) = delete;

  void Observe(double value);

  struct Reading {
    std::vector<uint64_t> counts;  // of each bucket alone, the last one above all bounds
    double sum = 0;
  };
  Reading Read() const;

 private:
  const double* bounds_;
  uint32_t num_bounds_;
  std::atomic<double> sum_{0};
  std::array<std::atomic<uint64_t>, kMaxBounds + 1> counts_{};
};

}  // namespace banyan
