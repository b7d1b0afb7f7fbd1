// Health follows the experts: SERVING while every shard has a usable replica.
#pragma once

#include <functional>
#include <thread>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/metrics/registry.h"

namespace banyan::trunk {

// Looks every 100 ms; a loss counts once it has lasted 500 ms (a replica that is replaced within
// that time is nobody's business), a return at once. Owned by one thread; callbacks run on its own.
class ReadinessMonitor {
 public:
  // `ready`: OK, or which shard is missing. `set_serving` is called at every change.
  ReadinessMonitor(std::function<absl::Status()> ready, std::function<void(bool)> set_serving,
                   MetricsRegistry* metrics);
  // Joins; nothing is called any more.
  ~ReadinessMonitor();
  ReadinessMonitor(const ReadinessMonitor&) = delete;
  ReadinessMonitor& operator=(const ReadinessMonitor&) = delete;

 private:
  void Run();

  const std::function<absl::Status()> ready_;
  const std::function<void(bool)> set_serving_;
  prometheus::Gauge& serving_gauge_;
  prometheus::Counter& losses_;
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace banyan::trunk
