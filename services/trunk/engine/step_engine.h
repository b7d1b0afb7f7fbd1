// The engine: request intake on any thread, the step loop on its own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "services/trunk/engine/engine.h"
#include "services/trunk/engine/engine_metrics.h"
#include "services/trunk/engine/generation.h"
#include "services/trunk/engine/join_trace.h"
#include "services/trunk/engine/token_stage.h"
#include "services/trunk/scheduler/scheduler.h"

namespace banyan::trunk {

class StepEngine final : public Engine {
 public:
  // `options` complete and checked by Engine::Create.
  StepEngine(const Options& options, ForwardPass* forward, ExpertTransport* experts,
             MetricsRegistry* metrics, const Clock* clock);
  ~StepEngine() override;

  absl::StatusOr<int64_t> Submit(Request request,
                                 std::shared_ptr<RequestListener> listener) override;
  void Cancel(int64_t handle) override;
  Snapshot GetSnapshot() const override;
  void Drain(absl::Time deadline) override;

 private:
  // Intake: any thread.
  absl::Status Validate(const Request& request) const;
  absl::Status QueueFull() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The loop: the engine's thread.
  void Run();
  bool WaitForWork();
  void TakeIntake();
  void EndExpired();
  void RunStep();
  bool EndOnFault();
  void NoteStarted(std::span<Sequence* const> started, absl::Time now);
  void NoteStep(const Scheduler::Plan& plan);
  void Publish(Choice* choice);
  void Finish(Generation* generation, FinishReason reason, absl::Status status = absl::OkStatus(),
              int32_t stop_token_id = -1);
  void CountOutcome(FinishReason reason, const absl::Status& status);
  void UpdateSnapshot();
  Generation* Find(const Sequence* sequence);

  // Experts gone: the engine's thread.
  void NoteExpertsLost(const absl::Status& status);
  void NoteExpertsBack();
  bool WaitForExperts();
  void EndUnavailable();

  const Options options_;
  ForwardPass* const forward_;
  ExpertTransport* const experts_;
  const Clock* const clock_;
  EngineMetrics metrics_;

  // Engine's thread only.
  Scheduler scheduler_;
  TokenStage token_stage_;
  JoinTrace join_trace_;
  std::map<int64_t, std::unique_ptr<Generation>> generations_;  // by handle, oldest first
  std::vector<Generation*> step_generations_;                   // of the step's segments
  absl::Time last_start_ = absl::InfinitePast();
  int64_t counted_preemptions_ = 0;
  uint64_t counted_weight_bytes_ = 0;
  uint64_t counted_expert_bytes_ = 0;
  int32_t lost_steps_ = 0;  // since a step last ran; 0: the experts are there
  absl::Time lost_since_;
  absl::Time outage_counted_;
  absl::Status loss_;

  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<Generation>> incoming_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<int64_t> live_ ABSL_GUARDED_BY(mutex_);  // OnFinished not yet returned
  absl::flat_hash_set<int64_t> cancels_ ABSL_GUARDED_BY(mutex_);
  int64_t next_handle_ ABSL_GUARDED_BY(mutex_) = 1;
  int32_t num_queued_ ABSL_GUARDED_BY(mutex_) = 0;
  double seconds_per_start_ ABSL_GUARDED_BY(mutex_) = 0;  // smoothed; for retry advice
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);  // of the device
  bool end_all_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  Snapshot snapshot_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace banyan::trunk
