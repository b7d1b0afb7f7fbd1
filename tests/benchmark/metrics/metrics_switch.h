// Turns the updates of all metrics in this process on and off. A program that links this calls
// prometheus-cpp through it: its definitions of the library's functions come first at dynamic
// linking, and return at once while off. Those of hot_metrics.h are wrapped when it is linked.
#pragma once

#include <cstdint>

namespace banyan::metrics_switch {

// Any thread, at any time; on from the start.
void Set(bool on);

struct Updates {
  int64_t counters = 0;
  int64_t gauges = 0;
  int64_t histograms = 0;
  int64_t hot_counters = 0;  // of hot_metrics.h
  int64_t hot_histograms = 0;
};
// Counts updates from all threads between the two calls, which costs more than not to: for a run of
// its own. Updates that the library makes inside another one do not count.
void StartCounting();
Updates StopCounting();

}  // namespace banyan::metrics_switch
