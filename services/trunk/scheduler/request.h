// One generation as the engine sees it: ids in, tokens out. Text is the server's business.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/trunk/sampling/logprobs.h"
#include "services/trunk/sampling/sampling_params.h"

namespace banyan::trunk {

struct Request {
  std::string request_id;           // for logs and messages
  std::string traceparent;          // of the client (trace_context.h), for logs; "": none
  std::vector<int32_t> prompt_ids;  // at least one
  SamplingParams sampling;
  int32_t max_new_tokens = 0;           // 0: the prompt is processed, nothing is generated
  std::vector<int32_t> stop_token_ids;  // end tokens (unless ignored) and the client's own
  int32_t num_logprobs = 0;             // alternatives per token; 0 and !logprobs: none
  bool logprobs = false;                // of the chosen tokens
  bool prompt_logprobs = false;
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled };

struct RequestTimings {
  absl::Duration queue;    // from Submit to the first step
  absl::Duration prefill;  // to the first token
  absl::Duration decode;   // to the last token
};

struct FinishInfo {
  // Not OK: kDeadlineExceeded, kUnavailable (experts gone too long, or shut down before the end),
  // kInternal; `reason` is then kCancelled. Cancel() by the client: OK and kCancelled.
  absl::Status status;
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token_id = -1;  // the end token that was met, or -1
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;  // the end token counts
  RequestTimings timings;
};

// Receives a request's events on the engine's thread, in order: OnStarted once, OnToken any number
// of times, OnFinished exactly once and last (also without the others). Must not block.
class RequestListener {
 public:
  virtual ~RequestListener() = default;
  virtual void OnStarted(std::vector<TokenLogprobs> prompt_logprobs) = 0;
  // `is_stop_token`: the token ends the answer and is not part of its text. True when the listener
  // has found a stop string: the request then finishes with kStop.
  virtual bool OnToken(int32_t token_id, bool is_stop_token, const TokenLogprobs* logprobs) = 0;
  virtual void OnFinished(const FinishInfo& info) = 0;
};

}  // namespace banyan::trunk
