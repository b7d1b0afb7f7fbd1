// Shows how far several services have loaded: bars that are redrawn on a terminal, a plain line per
// change elsewhere.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace banyan::client {

// One service's load as far as a viewer needs it.
struct LoadRow {
  std::string name;
  std::string phase;  // "starting", "read", "ready", ...
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
  double elapsed_seconds = 0;
  std::string detail;
  // Of the present phase; 0: unknown.
  double bytes_per_second = 0;
  double remaining_seconds = 0;
  double cpus = 0;  // kept busy
  uint64_t resident_bytes = 0;
};

// Owned by one thread; writes to `out` (borrowed).
class ProgressView {
 public:
  ProgressView(std::FILE* out, bool is_terminal) : out_(out), is_terminal_(is_terminal) {}

  // Plain mode prints a row when its phase or detail changed, or it went on by 10 %.
  void Update(const std::vector<LoadRow>& rows);
  // A line of its own, above the bars.
  void Say(const std::string& line);
  // Leaves the bars as they are; the next Update draws new ones below.
  void Release() { drawn_lines_ = 0; }

  // "expert 0  read     [#######-------]  47 %  12.1 of 25.7 GB  0.92 GB/s  15 s left  1.8 CPUs
  // 13.0 GB", at most `columns` wide
  static std::string BarLine(const LoadRow& row, int columns);
  // "expert 0: read 47 % (12.1 GB of 25.7 GB, 920 MB/s, 15 s left, 1.8 CPUs, 13.0 GB of memory)"
  static std::string PlainLine(const LoadRow& row);

 private:
  void EraseBars();

  std::FILE* const out_;
  const bool is_terminal_;
  int drawn_lines_ = 0;
  std::vector<LoadRow> shown_;  // as last drawn or printed
};

}  // namespace banyan::client
