// The state of a service's load: written by the loading thread, read by WatchLoad streams and
// metrics.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/common/v1/load.pb.h"

namespace banyan {

// Thread-safe. `elapsed_seconds` runs from construction and stands still at READY and FAILED. Logs
// each phase at its end and, every few seconds, how far a long one is.
class LoadTracker {
 public:
  // Called with every new phase, in order, with the tracker locked: it may not call back.
  using PhaseListener = std::function<void(common::v1::LoadProgress::Phase)>;
  // Likewise with the bytes of the phase, done and in all.
  using BytesListener =
      std::function<void(common::v1::LoadProgress::Phase, uint64_t done, uint64_t total)>;
  explicit LoadTracker(PhaseListener on_phase = nullptr, BytesListener on_bytes = nullptr);

  // READY and FAILED end the load.
  static bool IsLast(common::v1::LoadProgress::Phase phase) {
    return phase == common::v1::LoadProgress::READY || phase == common::v1::LoadProgress::FAILED;
  }

  // A new phase starts with both byte counts at 0.
  void SetPhase(common::v1::LoadProgress::Phase phase, std::string detail = "");
  void SetBytes(uint64_t done, uint64_t total);
  // Of a trunk: part of every report from now on.
  void SetReplicas(std::vector<common::v1::LoadProgress::Replica> replicas);

  common::v1::LoadProgress Get() const;
  // Grows by one with every change: a stream sends when it differs from what it sent last.
  uint64_t version() const;
  // Returns when version() != seen or at the deadline; the current version.
  uint64_t AwaitChange(uint64_t seen, absl::Time deadline) const;

 private:
  // Where a phase stood at a time.
  struct Sample {
    absl::Time at;
    uint64_t bytes = 0;
  };
  common::v1::LoadProgress Measured(absl::Time now) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Log(const char* event, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const PhaseListener on_phase_;
  const BytesListener on_bytes_;
  mutable absl::Mutex mutex_;
  common::v1::LoadProgress progress_ ABSL_GUARDED_BY(mutex_);
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 1;
  double finished_seconds_ ABSL_GUARDED_BY(mutex_) = -1;
  const absl::Time start_;
  absl::Time phase_start_ ABSL_GUARDED_BY(mutex_);
  absl::Time next_log_ ABSL_GUARDED_BY(mutex_);
  double phase_start_cpu_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Sample> samples_ ABSL_GUARDED_BY(mutex_);  // of the phase's last seconds
};

}  // namespace banyan
