#include "tests/benchmark/metrics/metrics_switch.h"

#include <dlfcn.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <atomic>

#include "common/base/check.h"

namespace banyan::metrics_switch {
namespace {

std::atomic<bool> is_on{true};
std::atomic<bool> is_counting{false};
std::atomic<int64_t> num_counters{0};
std::atomic<int64_t> num_gauges{0};
std::atomic<int64_t> num_histograms{0};
thread_local int depth = 0;

// The library's own function. A member function is called as one whose first argument is `this`
// (Itanium C++ ABI).
template <typename Function>
Function* Original(const char* symbol) {
  void* const found = dlsym(RTLD_NEXT, symbol);
  CHECK(found != nullptr);
  return reinterpret_cast<Function*>(found);
}

template <typename Call>
void Pass(std::atomic<int64_t>& count, Call call) {
  if (!is_on.load(std::memory_order_relaxed)) return;
  if (!is_counting.load(std::memory_order_relaxed)) {
    call();
    return;
  }
  if (depth++ == 0) count.fetch_add(1, std::memory_order_relaxed);
  call();
  --depth;
}

}  // namespace

void Set(bool on) { is_on.store(on, std::memory_order_relaxed); }

void StartCounting() {
  num_counters = 0;
  num_gauges = 0;
  num_histograms = 0;
  is_counting = true;
}

Updates StopCounting() {
  is_counting = false;
  return {num_counters, num_gauges, num_histograms};
}

}  // namespace banyan::metrics_switch

namespace prometheus {

using banyan::metrics_switch::num_counters;
using banyan::metrics_switch::num_gauges;
using banyan::metrics_switch::num_histograms;
using banyan::metrics_switch::Original;
using banyan::metrics_switch::Pass;

void Counter::Increment() {
  static auto* const original = Original<void(Counter*)>("_ZN10prometheus7Counter9IncrementEv");
  Pass(num_counters, [this] { original(this); });
}

void Counter::Increment(double amount) {
  static auto* const original =
      Original<void(Counter*, double)>("_ZN10prometheus7Counter9IncrementEd");
  Pass(num_counters, [this, amount] { original(this, amount); });
}

void Gauge::Set(double value) {
  static auto* const original = Original<void(Gauge*, double)>("_ZN10prometheus5Gauge3SetEd");
  Pass(num_gauges, [this, value] { original(this, value); });
}

void Histogram::Observe(double value) {
  static auto* const original =
      Original<void(Histogram*, double)>("_ZN10prometheus9Histogram7ObserveEd");
  Pass(num_histograms, [this, value] { original(this, value); });
}

}  // namespace prometheus
