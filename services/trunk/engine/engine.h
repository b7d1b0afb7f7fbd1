// The step loop: schedule, forward, sample, publish. Owns its thread.
#pragma once

#include <cstdint>
#include <functional>
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

// Thread-safe. Listeners are called on the engine's own thread, without a lock held; they may call
// Submit, Cancel and GetSnapshot, but not Drain or the destructor.
//
// Experts gone (Forward returns kUnavailable): the step's sequences are computed again from
// position 0, their tokens stay. The loop waits for ExpertTransport::WaitReady and goes on by
// itself. A request that has waited `expert_wait` since the loss, or since its submission if that
// was later, fails with kUnavailable; the loss lasts until a step has run.
//
// Device lost (ForwardPass::Fault): everything ends with kInternal, and nothing new is taken.
class Engine {
 public:
  struct Options {
    // Rows of one step; at least max_sequences + 63, so that every step has room for a piece of a
    // prompt beside the decoding sequences.
    int32_t max_batch_tokens = 512;
    // The same of a step in which a sequence decodes, which waits as long as it takes; not more,
    // and as many at least. 0: max_batch_tokens.
    int32_t max_mixed_tokens = 0;
    int32_t max_sequences = 32;  // running at once; each holds a recurrent-state slot
    int32_t max_queued_requests = 64;
    // Prompt and output of one request. 0: what the model and its KV pages allow, which is the
    // limit in any case.
    int32_t max_context_tokens = 0;
    int32_t sampled_vocab_size = 0;  // ids from here on are never sampled; 0: the vocabulary
    // How long requests under way wait for a lost shard before they fail with kUnavailable.
    absl::Duration expert_wait = absl::Seconds(10);
    // Told that the device is lost, once, before any listener is; on the engine's thread.
    std::function<void(const absl::Status&)> on_fault{};
  };

  struct Snapshot {
    int32_t running = 0;  // had their first step; includes preempted ones
    int32_t queued = 0;
    int32_t free_pages = 0;
    int32_t num_pages = 0;
    int32_t used_slots = 0;
    int32_t num_slots = 0;
    int32_t max_context_tokens = 0;  // in force
  };

  // `forward`, `experts`, `metrics` and `clock` are borrowed and outlive the engine. The thread
  // starts here. kInvalidArgument: options against each other or against forward->limits(), with
  // the numbers.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Options& options,
                                                        ForwardPass* forward,
                                                        ExpertTransport* experts,
                                                        MetricsRegistry* metrics,
                                                        const Clock* clock);
  // Cancels what is left.
  virtual ~Engine() = default;

  // Queues a request. kInvalidArgument: empty prompt, ids outside the vocabulary, prompt beyond the
  // context, sampling parameters out of range; kResourceExhausted: the queue is full (the message
  // says when to retry); kUnavailable: draining, or the device is lost. On error the listener hears
  // nothing. The output ends with kLength at max_new_tokens or at the end of the context. The
  // handle is for Cancel.
  virtual absl::StatusOr<int64_t> Submit(Request request,
                                         std::shared_ptr<RequestListener> listener) = 0;

  // Frees everything within one step; the listener hears OnFinished(kCancelled). Unknown handles
  // are ignored.
  virtual void Cancel(int64_t handle) = 0;

  virtual Snapshot GetSnapshot() const = 0;

  // Takes nothing new, waits for the rest until the deadline, then ends it with kUnavailable.
  // Returns when every listener has heard OnFinished and is released. Idempotent.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace banyan::trunk
