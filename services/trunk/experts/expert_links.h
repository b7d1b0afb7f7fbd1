// The streams to all replicas of all shards, on one completion queue that is polled in turns.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/queue_poller.h"
#include "common/rpc/shm_ring.h"
#include "common/rpc/yielding_spin.h"
#include "services/trunk/experts/expert_stream.h"

namespace banyan::trunk {

// The thread that needs an answer polls for it itself; a thread that polled for it would cost two
// wake-ups a call. So the queue has no thread: the transport has the turn from Dispatch through
// Combine, and in between the directory takes it for moments to notice lost streams. What is marked
// "turn" may be called only with the turn.
class ExpertLinks {
 public:
  using Clock = QueuePoller::Clock;
  // Called with the turn: a stream is ready (OK), or is lost or was refused (why).
  using Listener = std::function<void(int32_t replica, const absl::Status& status)>;

  ExpertLinks(int32_t num_replicas, absl::Duration spin, Listener listener);
  // Ends all streams; nobody may have the turn.
  ~ExpertLinks();
  ExpertLinks(const ExpertLinks&) = delete;
  ExpertLinks& operator=(const ExpertLinks&) = delete;

  // Opens a stream at the next poll; the replica must have none. `ring`: memory to offer, or
  // nullptr. Thread-safe.
  void Open(int32_t replica, std::shared_ptr<grpc::Channel> channel,
            std::unique_ptr<ShmRingCaller> ring);

  // Taken and given back by the same thread. Not recursive.
  void TakeTurn() ABSL_EXCLUSIVE_LOCK_FUNCTION(turn_) { turn_.Lock(); }
  bool TryTakeTurn() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true, turn_) { return turn_.TryLock(); }
  void EndTurn() ABSL_UNLOCK_FUNCTION(turn_) { turn_.Unlock(); }

  // turn: the replica's stream, nullptr when it has none.
  ExpertStream* stream(int32_t replica) { return streams_[static_cast<size_t>(replica)].get(); }

  // turn: handles one event, or returns at the deadline. The stream whose reply has arrived, else
  // nullptr; `*any` tells whether there was an event.
  ExpertStream* Next(Clock::time_point deadline, bool* any);
  ExpertStream* Poll(bool* any);

  // turn: ends a stream and tells the listener.
  void Drop(int32_t replica, const absl::Status& status);

 private:
  struct Request {
    int32_t replica;
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<ShmRingCaller> ring;
  };
  struct QueueEvent {
    void* tag;
    bool ok;
  };
  void Adopt();
  bool PollQueue();
  ExpertStream* RingAnswer();
  ExpertStream* RingAwaited();
  ExpertStream* Handle(const QueueEvent& event);
  void Bury(int32_t replica);

  const Listener listener_;
  grpc::CompletionQueue queue_;
  QueuePoller poller_;
  YieldingSpin spin_;

  absl::Mutex requests_mutex_;
  std::vector<Request> requests_ ABSL_GUARDED_BY(requests_mutex_);
  std::atomic<bool> has_requests_{false};

  absl::Mutex turn_;
  // turn:
  std::vector<std::unique_ptr<ExpertStream>> streams_;  // by replica
  std::vector<std::unique_ptr<ExpertStream>> buried_;   // over, events still to come
  std::optional<QueueEvent> event_;                     // taken from the queue, not handled yet
};

}  // namespace banyan::trunk
