// What the step loop does while a shard has no usable replica.
#include <algorithm>

#include "common/base/logging.h"
#include "common/base/strings.h"
#include "services/trunk/engine/step_engine.h"

namespace banyan::trunk {
namespace {

// WaitReady is called for at most this long, so that cancellations and deadlines are heard.
constexpr absl::Duration kWaitSlice = absl::Milliseconds(10);
// Pauses between steps that fail although WaitReady says that all is well.
constexpr absl::Duration kFirstPause = absl::Milliseconds(2);
constexpr absl::Duration kLongestPause = absl::Milliseconds(200);

}  // namespace

void StepEngine::NoteExpertsLost(const absl::Status& status) {
  if (lost_steps_++ == 0) {
    lost_since_ = outage_counted_ = clock_->Now();
    metrics_.waiting_for_experts.Set(1);
    LogWarning("experts_lost", {{"requests", generations_.size()}, {"status", status}});
  }
  loss_ = status;
}

void StepEngine::NoteExpertsBack() {
  const absl::Time now = clock_->Now();
  AddSeconds(&metrics_.expert_outage_seconds, now - outage_counted_);
  metrics_.waiting_for_experts.Set(0);
  LogInfo("experts_back",
          {{"after_s", absl::ToDoubleSeconds(now - lost_since_)}, {"failed_steps", lost_steps_}});
  lost_steps_ = 0;
  loss_ = absl::OkStatus();
}

void StepEngine::EndUnavailable() {
  const absl::Time now = clock_->Now();
  AddSeconds(&metrics_.expert_outage_seconds, now - outage_counted_);
  outage_counted_ = now;
  for (auto next = generations_.begin(); next != generations_.end();) {
    Generation* const generation = (next++)->second.get();
    const absl::Duration waited = now - std::max(lost_since_, generation->submitted);
    if (waited < options_.expert_wait) continue;
    Finish(generation, FinishReason::kCancelled,
           StatusF(absl::StatusCode::kUnavailable, "experts were not back within {:g} s: {}",
                   absl::ToDoubleSeconds(options_.expert_wait), ToStd(loss_.message())));
  }
}

// True when a step may be tried.
bool StepEngine::WaitForExperts() {
  EndUnavailable();
  if (generations_.empty()) return false;
  if (lost_steps_ > 1) {
    // Ready, and yet the last try failed: do not hammer.
    const absl::Duration pause =
        std::min(kLongestPause, kFirstPause * (1 << std::min(lost_steps_ - 2, 10)));
    const auto called = [](StepEngine* engine) ABSL_EXCLUSIVE_LOCKS_REQUIRED(engine->mutex_) {
      return engine->end_all_ || !engine->cancels_.empty();
    };
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(+called, this), pause)) return false;
  }
  return experts_->WaitReady(clock_->Now() + kWaitSlice).ok();
}

}  // namespace banyan::trunk
