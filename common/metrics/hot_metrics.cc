#include "common/metrics/hot_metrics.h"

#include "common/base/check.h"

namespace banyan {
namespace {

// One writer: no read-modify-write.
template <typename T>
void Add(std::atomic<T>& to, T amount) {
  to.store(to.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

}  // namespace

void HotCounter::Increment(double amount) { Add(value_, amount); }

HotHistogram::HotHistogram(const std::vector<double>& bounds)
    : bounds_(bounds.data()), num_bounds_(static_cast<uint32_t>(bounds.size())) {
  CHECK(!bounds.empty() && bounds.size() <= kMaxBounds);
}

void HotHistogram::Observe(double value) {
  // From below: calls are short.
  uint32_t bucket = 0;
  while (bucket < num_bounds_ && !(value <= bounds_[bucket])) ++bucket;
  Add(counts_[bucket], uint64_t{1});
  Add(sum_, value);
}

HotHistogram::Reading HotHistogram::Read() const {
  Reading out;
  for (size_t i = 0; i <= num_bounds_; ++i) {
    out.counts.push_back(counts_[i].load(std::memory_order_relaxed));
  }
  out.sum = sum_.load(std::memory_order_relaxed);
  return out;
}

}  // namespace banyan
