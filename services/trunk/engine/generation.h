// A request on its way through the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "services/trunk/sampling/logprobs.h"
#include "services/trunk/sampling/token_history.h"
#include "services/trunk/scheduler/request.h"
#include "services/trunk/scheduler/sequence.h"

namespace banyan::trunk {

// Plain data; made by Submit, then owned by the engine's thread. request.prompt_ids has moved into
// sequence.tokens.
struct Generation {
  Request request;
  std::shared_ptr<RequestListener> listener;
  Sequence sequence;
  TokenHistory history;

  absl::Time submitted;
  absl::Time first_step = absl::InfiniteFuture();  // not yet
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();

  bool in_queue = true;   // counts against max_queued_requests
  bool reported = false;  // OnStarted has been called
  // The highest logits have not been enough: tokens before this position take all logits.
  int32_t all_logits_until = 0;
  std::vector<TokenLogprobs> prompt_logprobs;
  int32_t prompt_logprobs_done = 0;  // not computed again after a preemption

  int64_t handle() const { return sequence.id; }
  int32_t completion_tokens() const { return sequence.num_tokens() - sequence.prompt_tokens; }
  bool prompt_only() const { return sequence.max_tokens == sequence.prompt_tokens; }
};

}  // namespace banyan::trunk
