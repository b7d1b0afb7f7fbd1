#include "common/rpc/load_watchers.h"

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace banyan {
namespace {

using common::v1::LoadProgress;

constexpr absl::Duration kLongestSilence = absl::Seconds(1);
constexpr absl::Duration kStopPoll = absl::Milliseconds(200);

}  // namespace

class LoadWatchers::Impl : public std::enable_shared_from_this<LoadWatchers::Impl> {
 public:
  explicit Impl(const LoadTracker& tracker) : tracker_(tracker) {}

  void Start() {
    thread_ = std::thread([this] { Loop(); });
  }

  void Stop() {
    stopping_ = true;
    {
      absl::MutexLock lock(&mutex_);
      for (Stream* stream : streams_) {
        stream->EndWith(Stopping());
      }
    }
    if (thread_.joinable()) thread_.join();
  }

  grpc::ServerWriteReactor<LoadProgress>* NewStream() {
    auto* stream = new Stream(shared_from_this());
    {
      absl::MutexLock lock(&mutex_);
      streams_.insert(stream);
      // A stream whose call is cancelled meanwhile deletes itself, but not before Remove.
      if (stopping_) {
        stream->EndWith(Stopping());
      } else {
        stream->Poke();
      }
    }
    return stream;
  }

  bool WaitUntilTold(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithDeadline(absl::Condition(this, &Impl::NoStreams), deadline);
  }

 private:
  class Stream final : public grpc::ServerWriteReactor<LoadProgress> {
   public:
    explicit Stream(std::shared_ptr<Impl> owner) : owner_(std::move(owner)) {}

    // Sends if there is something new or the silence was long.
    void Poke() {
      absl::MutexLock lock(&mutex_);
      PokeLocked();
    }

    void EndWith(const grpc::Status& status) {
      absl::MutexLock lock(&mutex_);
      FinishLocked(status);
    }

    void OnWriteDone(bool ok) override {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) {
        FinishLocked(grpc::Status::CANCELLED);
      } else if (LoadTracker::IsLast(message_.phase())) {
        FinishLocked(grpc::Status::OK);
      } else {
        PokeLocked();
      }
    }

    void OnCancel() override { EndWith(grpc::Status::CANCELLED); }

    void OnDone() override {
      owner_->Remove(this);
      delete this;
    }

   private:
    void PokeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      if (writing_ || finished_) return;
      const uint64_t version = owner_->tracker_.version();
      const absl::Time now = absl::Now();
      if (version == sent_version_ && now < sent_at_ + kLongestSilence) return;
      message_ = owner_->tracker_.Get();
      sent_version_ = version;
      sent_at_ = now;
      writing_ = true;
      StartWrite(&message_);
    }

    void FinishLocked(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      if (finished_) return;
      finished_ = true;
      Finish(status);
    }

    const std::shared_ptr<Impl> owner_;
    absl::Mutex mutex_;
    LoadProgress message_;
    uint64_t sent_version_ ABSL_GUARDED_BY(mutex_) = 0;
    absl::Time sent_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
    bool writing_ ABSL_GUARDED_BY(mutex_) = false;
    bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  };

  static grpc::Status Stopping() {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "this host is stopping");
  }

  void Loop() {
    uint64_t seen = 0;
    absl::Time told_at = absl::InfinitePast();
    while (!stopping_) {
      const uint64_t version = tracker_.AwaitChange(seen, absl::Now() + kStopPoll);
      const bool last = LoadTracker::IsLast(tracker_.Get().phase());
      if (version != seen || absl::Now() >= told_at + kLongestSilence) {
        told_at = absl::Now();
        absl::MutexLock lock(&mutex_);
        for (Stream* stream : streams_) stream->Poke();
      }
      seen = version;
      if (last) return;  // streams made from now on get the last message at once
    }
  }

  void Remove(Stream* stream) {
    absl::MutexLock lock(&mutex_);
    streams_.erase(stream);
  }

  bool NoStreams() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return streams_.empty(); }

  const LoadTracker& tracker_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
  absl::Mutex mutex_;
  std::set<Stream*> streams_ ABSL_GUARDED_BY(mutex_);
};

LoadWatchers::LoadWatchers(const LoadTracker& tracker) : impl_(std::make_shared<Impl>(tracker)) {
  impl_->Start();
}
LoadWatchers::~LoadWatchers() { Stop(); }
grpc::ServerWriteReactor<LoadProgress>* LoadWatchers::NewStream() { return impl_->NewStream(); }
bool LoadWatchers::WaitUntilTold(absl::Time deadline) { return impl_->WaitUntilTold(deadline); }
void LoadWatchers::Stop() { impl_->Stop(); }

}  // namespace banyan
