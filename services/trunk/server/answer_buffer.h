// Between the engine, which must not wait, and a client that reads when it likes: what the engine
// says gathers here until the writer takes it as messages.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/inference/v1/inference.pb.h"
#include "services/trunk/scheduler/request.h"
#include "services/trunk/server/text_stream.h"

namespace banyan::trunk {

// Thread-safe: the engine calls the listener's half, one writer the other.
class AnswerBuffer final : public RequestListener {
 public:
  struct Options {
    std::string request_id;
    int32_t prompt_tokens = 0;
    std::vector<std::string> stop;
    const BpeTokenizer* tokenizer = nullptr;  // borrowed; null: no text
    // Of the answer waiting for the writer. Well below the 4 MiB that clients accept by default,
    // for all of it becomes one message.
    size_t max_pending_bytes = size_t{2} << 20;
  };

  // `wake` is called, from the engine's thread and with no lock held, when something is there after
  // Take has returned kNothing. It must not block.
  AnswerBuffer(Options options, std::function<void()> wake);

  // RequestListener.
  void OnStarted(std::vector<TokenLogprobs> prompt_logprobs) override;
  bool OnToken(int32_t token_id, bool is_stop_token, const TokenLogprobs* logprobs) override;
  void OnFinished(const FinishInfo& info) override;

  enum class Taken : uint8_t {
    kNothing,   // wake() follows
    kMessage,   // write it and come again
    kLast,      // write it and end the call with OK
    kEnd,       // no message: end the call with status()
    kOverflow,  // more than max_pending_bytes waited: cancel the request; nothing follows
  };
  // Several tokens that came while the writer was busy make one message.
  Taken Take(inference::v1::GenerateResponse& message);

  // After kEnd.
  absl::Status status() const;
  // After kLast or kEnd; token counts and timings.
  FinishInfo finish_info() const;

 private:
  void Wake() ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  const std::function<void()> wake_;
  mutable absl::Mutex mutex_;
  TextStream text_ ABSL_GUARDED_BY(mutex_);
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<TokenLogprobs> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  bool has_chunk_ ABSL_GUARDED_BY(mutex_) = false;
  inference::v1::Chunk chunk_ ABSL_GUARDED_BY(mutex_);
  size_t chunk_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string stop_match_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool overflow_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // Take has said the last thing
  FinishInfo info_ ABSL_GUARDED_BY(mutex_);
  bool writer_waits_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace banyan::trunk
