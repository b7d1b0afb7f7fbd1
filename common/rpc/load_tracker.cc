#include "common/rpc/load_tracker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/metrics/process_metrics.h"

namespace banyan {
namespace {

using common::v1::LoadProgress;

constexpr absl::Duration kLogEvery = absl::Seconds(5);
constexpr absl::Duration kRateWindow = absl::Seconds(5);
constexpr absl::Duration kSampleEvery = absl::Milliseconds(200);
// A rate that was measured over less says nothing about the rest.
constexpr double kMinSecondsForRate = 0.1;

}  // namespace

LoadTracker::LoadTracker(PhaseListener on_phase, BytesListener on_bytes)
    : on_phase_(std::move(on_phase)),
      on_bytes_(std::move(on_bytes)),
      start_(absl::Now()),
      phase_start_(start_),
      next_log_(start_ + kLogEvery) {}

void LoadTracker::SetPhase(LoadProgress::Phase phase, std::string detail) {
  absl::MutexLock lock(&mutex_);
  if (progress_.phase() == phase && progress_.detail() == detail) return;
  if (progress_.phase() != phase) {
    const absl::Time now = absl::Now();
    if (progress_.phase() != LoadProgress::PHASE_UNSPECIFIED && !IsLast(progress_.phase())) {
      Log("load_phase", now);
    }
    progress_.set_bytes_done(0);
    progress_.set_bytes_total(0);
    phase_start_ = now;
    next_log_ = now + kLogEvery;
    phase_start_cpu_seconds_ = ReadProcessUsage().cpu_seconds;
    samples_.assign(1, {now, 0});
    if (on_phase_ != nullptr) on_phase_(phase);
  }
  progress_.set_phase(phase);
  progress_.set_detail(std::move(detail));
  if (finished_seconds_ < 0 && IsLast(phase)) {
    finished_seconds_ = absl::ToDoubleSeconds(absl::Now() - start_);
  } else if (!IsLast(phase)) {
    finished_seconds_ = -1;
  }
  ++version_;
}

void LoadTracker::SetBytes(uint64_t done, uint64_t total) {
  absl::MutexLock lock(&mutex_);
  if (progress_.bytes_done() == done && progress_.bytes_total() == total) return;
  progress_.set_bytes_done(done);
  progress_.set_bytes_total(total);
  if (on_bytes_ != nullptr) on_bytes_(progress_.phase(), done, total);
  ++version_;
  const absl::Time now = absl::Now();
  if (samples_.empty() || now - samples_.back().at >= kSampleEvery) {
    samples_.push_back({now, done});
    while (samples_.size() > 2 && now - samples_[1].at > kRateWindow) samples_.pop_front();
  }
  if (now < next_log_) return;
  next_log_ = now + kLogEvery;
  Log("loading", now);
}

void LoadTracker::SetReplicas(std::vector<LoadProgress::Replica> replicas) {
  absl::MutexLock lock(&mutex_);
  progress_.clear_replicas();
  for (LoadProgress::Replica& replica : replicas) *progress_.add_replicas() = std::move(replica);
  ++version_;
}

LoadProgress LoadTracker::Measured(absl::Time now) const {
  LoadProgress progress = progress_;
  const ProcessUsage usage = ReadProcessUsage();
  progress.set_resident_bytes(static_cast<uint64_t>(std::max<int64_t>(usage.resident_bytes, 0)));
  progress.set_elapsed_seconds(finished_seconds_ >= 0 ? finished_seconds_
                                                      : absl::ToDoubleSeconds(now - start_));
  if (IsLast(progress.phase())) return progress;
  const double phase_seconds = absl::ToDoubleSeconds(now - phase_start_);
  progress.set_phase_seconds(phase_seconds);
  if (phase_seconds >= kMinSecondsForRate) {
    progress.set_cpus(std::max(0.0, usage.cpu_seconds - phase_start_cpu_seconds_) / phase_seconds);
  }
  if (samples_.empty() || progress.bytes_done() <= samples_.front().bytes) return progress;
  const double seconds = absl::ToDoubleSeconds(now - samples_.front().at);
  if (seconds < kMinSecondsForRate) return progress;
  const double rate = static_cast<double>(progress.bytes_done() - samples_.front().bytes) / seconds;
  progress.set_bytes_per_second(rate);
  if (progress.bytes_total() > progress.bytes_done()) {
    progress.set_remaining_seconds(
        static_cast<double>(progress.bytes_total() - progress.bytes_done()) / rate);
  }
  return progress;
}

void LoadTracker::Log(const char* event, absl::Time now) {
  if (!LogEnabled(LogLevel::kInfo)) return;
  const LoadProgress progress = Measured(now);
  const std::string phase = absl::AsciiStrToLower(LoadProgress::Phase_Name(progress.phase()));
  const bool has_bytes = progress.bytes_total() > 0;
  const double seconds = std::max(progress.phase_seconds(), 1e-9);
  if (event == std::string_view("load_phase")) {
    LogInfo(event, {{"phase", phase},
                    {"seconds", progress.phase_seconds()},
                    {"bytes", progress.bytes_done()},
                    {"bytes_per_second",
                     has_bytes ? static_cast<double>(progress.bytes_done()) / seconds : 0.0},
                    {"cpus", progress.cpus()},
                    {"resident_bytes", progress.resident_bytes()}});
  } else {
    LogInfo(event, {{"phase", phase},
                    {"bytes", progress.bytes_done()},
                    {"bytes_total", progress.bytes_total()},
                    {"bytes_per_second", progress.bytes_per_second()},
                    {"remaining_seconds", progress.remaining_seconds()},
                    {"cpus", progress.cpus()},
                    {"resident_bytes", progress.resident_bytes()}});
  }
}

LoadProgress LoadTracker::Get() const {
  absl::MutexLock lock(&mutex_);
  return Measured(absl::Now());
}

uint64_t LoadTracker::version() const {
  absl::MutexLock lock(&mutex_);
  return version_;
}

uint64_t LoadTracker::AwaitChange(uint64_t seen, absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  const auto changed = [this, seen]()
                           ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return version_ != seen; };
  mutex_.AwaitWithDeadline(absl::Condition(&changed), deadline);
  return version_;
}

}  // namespace banyan
