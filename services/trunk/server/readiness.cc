#include "services/trunk/server/readiness.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(100);
constexpr absl::Duration kGrace = absl::Milliseconds(500);

}  // namespace

ReadinessMonitor::ReadinessMonitor(std::function<absl::Status()> ready,
                                   std::function<void(bool)> set_serving, MetricsRegistry* metrics)
    : ready_(std::move(ready)),
      set_serving_(std::move(set_serving)),
      serving_gauge_(metrics->Gauge("banyan_trunk_serving", "1 while health is SERVING, else 0.")),
      losses_(metrics->Counter("banyan_trunk_shard_losses_total",
                               "Times that health left SERVING because a shard was lost.")),
      thread_([this] { Run(); }) {}

ReadinessMonitor::~ReadinessMonitor() {
  stop_.Notify();
  thread_.join();
  serving_gauge_.Set(0);
}

void ReadinessMonitor::Run() {
  bool serving = true;
  set_serving_(true);
  serving_gauge_.Set(1);
  absl::Time lost_since = absl::InfiniteFuture();
  do {
    const absl::Status status = ready_();
    const absl::Time now = absl::Now();
    if (status.ok()) {
      if (!serving) {
        LogInfo("serving_again", {{"lost_ms", absl::ToInt64Milliseconds(now - lost_since)}});
      }
      lost_since = absl::InfiniteFuture();
    } else if (lost_since == absl::InfiniteFuture()) {
      lost_since = now;
    }
    const bool should_serve = status.ok() || (serving && now - lost_since < kGrace);
    if (should_serve == serving) continue;
    serving = should_serve;
    if (!serving) {
      losses_.Increment();
      LogWarning("not_serving", {{"reason", status.message()}});
    }
    set_serving_(serving);
    serving_gauge_.Set(serving ? 1 : 0);
  } while (!stop_.WaitForNotificationWithTimeout(kInterval));
}

}  // namespace banyan::trunk
