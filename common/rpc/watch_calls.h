// The streams of a Watch method of a synchronous service: each tells one client the latest state of
// something, and holds a thread while it lasts.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace banyan {

// Thread-safe. A client that reads slowly misses states in between, never the last one.
class WatchCalls {
 public:
  // Threads that watchers of one service may hold.
  static constexpr int kMaxCalls = 32;

  template <typename Message>
  struct State {
    uint64_t version;  // differs from that of every earlier state, never 0
    Message message;
    bool last = false;  // the stream ends with OK after it
  };

  // A state is told again after this long.
  explicit WatchCalls(absl::Duration longest_silence = absl::InfiniteDuration())
      : longest_silence_(longest_silence) {}

  // A Watch handler's body. `await(seen, deadline)` returns the present State as soon as its
  // version is not `seen`, at the deadline in any case. RESOURCE_EXHAUSTED: too many watch already;
  // UNAVAILABLE: Stop was called.
  template <typename Message, typename Await>
  grpc::Status Serve(grpc::ServerContext* context, grpc::ServerWriter<Message>* writer,
                     Await await) {
    if (grpc::Status status = Enter(); !status.ok()) return status;
    grpc::Status status = Tell(context, writer, await);
    Leave();
    return status;
  }

  // Open streams end, later ones are refused.
  void Stop();
  // False when a stream is still open at the deadline.
  bool WaitUntilNone(absl::Time deadline);

 private:
  // How long a stream may fail to notice that its client has left, or Stop.
  static constexpr absl::Duration kLook = absl::Milliseconds(100);

  template <typename Message, typename Await>
  grpc::Status Tell(grpc::ServerContext* context, grpc::ServerWriter<Message>* writer,
                    Await& await) {
    uint64_t seen = 0;
    absl::Time told = absl::InfinitePast();
    while (true) {
      const State<Message> state = await(seen, absl::Now() + kLook);
      if (stopped()) return Stopping();
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
      if (state.version == seen && absl::Now() < told + longest_silence_) continue;
      if (!writer->Write(state.message)) return grpc::Status::CANCELLED;
      if (state.last) return grpc::Status::OK;
      seen = state.version;
      told = absl::Now();
    }
  }

  grpc::Status Enter();
  void Leave();
  bool stopped() const;
  static grpc::Status Stopping();
  bool None() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_calls_ == 0; }

  const absl::Duration longest_silence_;
  mutable absl::Mutex mutex_;
  int num_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace banyan
