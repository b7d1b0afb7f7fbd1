#include "tests/benchmark/metrics/metrics_switch.h"

#include <dlfcn.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <atomic>

#include "common/base/check.h"
#include "common/metrics/hot_metrics.h"

namespace banyan::metrics_switch {
namespace {

enum State { kOff, kOn, kCounting };
std::atomic<int> state{kOn};
std::atomic<int64_t> num_counters{0};
std::atomic<int64_t> num_gauges{0};
std::atomic<int64_t> num_histograms{0};
std::atomic<int64_t> num_hot_counters{0};
std::atomic<int64_t> num_hot_histograms{0};
thread_local int depth = 0;

// The library's own functions, found when the program starts. A member function is called as one
// whose first argument is `this` (Itanium C++ ABI).
template <typename Function>
Function* Original(const char* symbol) {
  void* const found = dlsym(RTLD_NEXT, symbol);
  CHECK(found != nullptr);
  return reinterpret_cast<Function*>(found);
}
auto* const increment = Original<void(void*)>("_ZN10prometheus7Counter9IncrementEv");
auto* const increment_by = Original<void(void*, double)>("_ZN10prometheus7Counter9IncrementEd");
auto* const set = Original<void(void*, double)>("_ZN10prometheus5Gauge3SetEd");
auto* const observe = Original<void(void*, double)>("_ZN10prometheus9Histogram7ObserveEd");

template <typename Call>
void Pass(std::atomic<int64_t>& count, Call call) {
  const int now = state.load(std::memory_order_relaxed);
  if (now == kOff) return;
  if (now == kOn) {
    call();
    return;
  }
  if (depth++ == 0) count.fetch_add(1, std::memory_order_relaxed);
  call();
  --depth;
}

}  // namespace

void Set(bool on) { state.store(on ? kOn : kOff, std::memory_order_relaxed); }

void StartCounting() {
  num_counters = 0;
  num_gauges = 0;
  num_histograms = 0;
  num_hot_counters = 0;
  num_hot_histograms = 0;
  state = kCounting;
}

Updates StopCounting() {
  state = kOn;
  return {num_counters, num_gauges, num_histograms, num_hot_counters, num_hot_histograms};
}

}  // namespace banyan::metrics_switch

namespace prometheus {

namespace metrics_switch = banyan::metrics_switch;

void Counter::Increment() {
  metrics_switch::Pass(metrics_switch::num_counters, [this] { metrics_switch::increment(this); });
}

void Counter::Increment(double amount) {
  metrics_switch::Pass(metrics_switch::num_counters,
                       [this, amount] { metrics_switch::increment_by(this, amount); });
}

void Gauge::Set(double value) {
  metrics_switch::Pass(metrics_switch::num_gauges,
                       [this, value] { metrics_switch::set(this, value); });
}

void Histogram::Observe(double value) {
  metrics_switch::Pass(metrics_switch::num_histograms,
                       [this, value] { metrics_switch::observe(this, value); });
}

}  // namespace prometheus

// Our own metrics: the linker gives the callers these (--wrap in CMakeLists.txt).
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier)
void __real__ZN6banyan10HotCounter9IncrementEd(banyan::HotCounter*, double);
void __real__ZN6banyan12HotHistogram7ObserveEd(banyan::HotHistogram*, double);

void __wrap__ZN6banyan10HotCounter9IncrementEd(banyan::HotCounter* counter, double amount) {
  banyan::metrics_switch::Pass(banyan::metrics_switch::num_hot_counters,
                               [&] { __real__ZN6banyan10HotCounter9IncrementEd(counter, amount); });
}

void __wrap__ZN6banyan12HotHistogram7ObserveEd(banyan::HotHistogram* histogram, double value) {
  banyan::metrics_switch::Pass(banyan::metrics_switch::num_hot_histograms, [&] {
    __real__ZN6banyan12HotHistogram7ObserveEd(histogram, value);
  });
}
// NOLINTEND(bugprone-reserved-identifier)
}
