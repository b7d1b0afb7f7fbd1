// Streams the latest state of something to one client, over gRPC's callback API. A client that
// reads slowly misses states in between, never the last one.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace banyan {

// Thread-safe. Deletes itself when the call is over, after `on_done`.
template <typename Message>
class WatchReactor final : public grpc::ServerWriteReactor<Message> {
 public:
  explicit WatchReactor(std::function<void(WatchReactor*)> on_done)
      : on_done_(std::move(on_done)) {}

  // Writes MESSAGE now, or after the one under way; then it replaces what waited there.
  // `last`: the stream ends with OK after it.
  void Send(Message message, bool last = false) {
    {
      absl::MutexLock lock(&mutex_);
      if (over_ || last_) return;
      last_ = last;
      waiting_ = std::move(message);
    }
    Continue();
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) cancelled_ = true;
    }
    Continue();
  }

  void OnCancel() override {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
    }
    Continue();
  }

  void OnDone() override {
    on_done_(this);
    delete this;
  }

 private:
  // gRPC is called without the lock.
  void Continue() {
    grpc::Status status;
    {
      absl::MutexLock lock(&mutex_);
      if (writing_ || over_) return;
      if (cancelled_) {
        over_ = true;
        status = grpc::Status::CANCELLED;
      } else if (waiting_.has_value()) {
        writing_ = true;
        current_ = *std::move(waiting_);
        waiting_.reset();
      } else if (last_) {
        over_ = true;
      } else {
        return;
      }
    }
    if (over()) {
      this->Finish(status);
    } else {
      this->StartWrite(&current_);
    }
  }
  bool over() const {
    absl::MutexLock lock(&mutex_);
    return over_;
  }

  const std::function<void(WatchReactor*)> on_done_;
  mutable absl::Mutex mutex_;
  Message current_;  // of the write under way
  std::optional<Message> waiting_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool last_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace banyan
