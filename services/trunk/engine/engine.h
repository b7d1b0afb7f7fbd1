// The step loop: schedule, forward, sample, publish. Owns its thread.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/metrics/registry.h"
#include "services/trunk/engine/forward_pass.h"
#include "services/trunk/experts/expert_transport.h"
#include "services/trunk/scheduler/request.h"

namespace banyan::trunk {

// Thread-safe.
class Engine {
 public:
  struct Options {
    int32_t max_batch_tokens = 512;  // rows of one step
    int32_t max_sequences = 32;      // running at once
    int32_t max_queued_requests = 64;
    int32_t max_context_tokens = 0;
    int32_t sampled_vocab_size = 0;  // ids from here on are never sampled
    // How long requests under way wait for a lost shard before they fail with kUnavailable.
    absl::Duration expert_wait = absl::Seconds(10);
  };

  struct Snapshot {
    int32_t running = 0;
    int32_t queued = 0;
    int32_t free_pages = 0;
    int32_t num_pages = 0;
  };

  // `forward`, `experts`, `metrics` and `clock` are borrowed and outlive the engine. The thread
  // starts here.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Options& options,
                                                        ForwardPass* forward,
                                                        ExpertTransport* experts,
                                                        MetricsRegistry* metrics,
                                                        const Clock* clock);
  virtual ~Engine() = default;

  // Queues a request. kInvalidArgument: empty prompt, ids outside the vocabulary, prompt beyond the
  // context; kResourceExhausted: the queue is full; kUnavailable: draining. On error the listener
  // hears nothing. The handle is for Cancel.
  virtual absl::StatusOr<int64_t> Submit(Request request,
                                         std::shared_ptr<RequestListener> listener) = 0;

  // Frees everything within one step; the listener hears OnFinished(kCancelled). Unknown handles
  // are ignored.
  virtual void Cancel(int64_t handle) = 0;

  virtual Snapshot GetSnapshot() const = 0;

  // Takes nothing new, waits for the rest until the deadline, then cancels it. Idempotent.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace banyan::trunk
