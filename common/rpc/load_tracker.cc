#include "common/rpc/load_tracker.h"

#include <utility>

#include "absl/time/clock.h"

namespace banyan {

LoadTracker::LoadTracker(PhaseListener on_phase, BytesListener on_bytes)
    : on_phase_(std::move(on_phase)), on_bytes_(std::move(on_bytes)), start_(absl::Now()) {}

void LoadTracker::SetPhase(common::v1::LoadProgress::Phase phase, std::string detail) {
  absl::MutexLock lock(&mutex_);
  if (progress_.phase() == phase && progress_.detail() == detail) return;
  if (progress_.phase() != phase) {
    progress_.set_bytes_done(0);
    progress_.set_bytes_total(0);
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
}

common::v1::LoadProgress LoadTracker::Get() const {
  absl::MutexLock lock(&mutex_);
  common::v1::LoadProgress progress = progress_;
  progress.set_elapsed_seconds(
      finished_seconds_ >= 0 ? finished_seconds_ : absl::ToDoubleSeconds(absl::Now() - start_));
  return progress;
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
