// What two readings of the services' metrics tell about the time between them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "services/client/connection/metrics_page.h"

namespace banyan::client {

// The pages of one moment; absent where none could be read.
struct MetricsReading {
  absl::Time at;
  std::optional<MetricsPage> trunk;
  std::vector<std::optional<MetricsPage>> experts;  // by shard
};

struct Percentiles {
  double count = 0;  // observations in the window; with none the others mean nothing
  double mean = 0, p50 = 0, p95 = 0, p99 = 0;
};

// Times are in seconds, rates per second. Figures of a page that is absent are 0 or empty.
struct Figures {
  struct Share {
    std::string name;
    double seconds_per_step = 0;
    double share = 0;  // of the time of the step loop, 0..1
  };
  struct Shard {
    std::string name;  // "0"
    double calls_per_second = 0;
    Percentiles call;                                // seen by the trunk
    double queue = 0, compute = 0, transport = 0;    // means, parts of a call
    std::optional<double> weight_bytes_per_second;   // while it computes; of the expert's own page
    std::optional<double> loaded_bytes, pool_bytes;  // likewise
  };
  struct Use {
    double used = 0, total = 0;
  };
  struct Trouble {
    std::string name;  // "expert resends, late"
    double total = 0;  // since the services started
    double gained = 0;
  };

  bool has_trunk = false;
  bool has_window = false;  // else only what one reading tells: the gauges and totals
  double window_seconds = 0;
  double running_requests = 0, queued_requests = 0;
  double ended_per_second = 0;
  double generated_per_second = 0, prompt_per_second = 0;  // tokens
  Percentiles ttft, itl, queue;
  double steps_per_second = 0, step_seconds = 0, rows_per_step = 0;
  double busy = 0;                // share of the window that the step loop worked, 0..1
  std::vector<Share> step_split;  // trunk, experts, sampling, other
  std::vector<Shard> shards;
  Use pages, slots;
  std::vector<Trouble> troubles;  // those that ever happened
};

// `before` may have no pages: then `has_window` is false. A counter that went back belongs to a
// process that has started anew and counts from 0.
Figures Compare(const MetricsReading& before, const MetricsReading& now);

}  // namespace banyan::client
