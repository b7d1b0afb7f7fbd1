// One Forward stream to one replica of a shard.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "common/rpc/shm_ring.h"

namespace banyan::trunk {

// Owned by whoever polls its completion queue. Its events carry tags of type Event*; hand each to
// OnEvent. Up to kMostCalls calls are under way, which the host answers in order: Send writes first
// and then posts the Read, never the other way round (docs/performance.md). A Finish is pending
// from the start, so that the end of the stream is noticed while nothing is under way.
//
// Where trunk and host share memory (ring() is there) calls go through it instead: then look for
// RingAnswered(), nothing of them comes through the queue.
class ExpertStream {
 public:
  enum class Operation : uint8_t { kStart, kMetadata, kWrite, kRead, kFinish };
  struct Event {
    ExpertStream* stream;
    Operation operation;
  };
  enum class State : uint8_t {
    kOpening,  // the host has not taken the stream yet
    kReady,    // calls may be sent, or are under way
    kOver,     // see status()
  };
  static constexpr size_t kMostCalls = 2;

  // Starts the stream; `replica` is the owner's number for it. `queue` is borrowed. `ring`: memory
  // to offer, or nullptr.
  ExpertStream(int32_t replica, const std::shared_ptr<grpc::Channel>& channel,
               grpc::CompletionQueue* queue, std::unique_ptr<ShmRingCaller> ring);

  int32_t replica() const { return replica_; }
  State state() const { return state_; }
  // No event will follow: the stream may be destroyed.
  bool quiet() const { return pending_ == 0; }
  // Of a stream that is over.
  const absl::Status& status() const { return status_; }
  // Sequences of the calls whose replies are awaited, oldest first.
  std::span<const uint64_t> awaited() const { return {awaited_.data(), num_awaited_}; }
  bool Awaits(uint64_t sequence) const;
  bool MaySend() const {
    return state_ == State::kReady && num_awaited_ < kMostCalls && !held_.has_value();
  }

  // The memory that the host has opened; nullptr: none, calls are frames.
  ShmRingCaller* ring() { return ring_opened_ && state_ == State::kReady ? ring_.get() : nullptr; }
  bool RingAnswered() const { return ring_opened_ && ring_->HasAnswer(); }

  // MaySend() must be true; sequences grow. Without a ring.
  void Send(const grpc::ByteBuffer& frame, uint64_t sequence);
  // With one, whose Rows() hold the activations.
  void Post(const ForwardRequestHeader& header, std::span<const uint16_t> expert_ids,
            std::span<const float> weights, std::string_view trace);

  // What an event meant for the owner.
  enum class News : uint8_t { kNone, kReady, kReply, kOver };
  News OnEvent(Operation operation, bool ok);

  // After News::kReply, before the next event, or while RingAnswered(): the frame that arrived or
  // what the ring holds, unchecked, and the call that it answers.
  struct Reply {
    grpc::ByteBuffer frame;
    std::optional<ForwardResponseView> in_ring;
    uint64_t sequence = 0;
  };
  Reply TakeReply();

  // Ends the stream with this status; events still in flight follow, but no News::kOver.
  void Cancel(const absl::Status& status);

 private:
  uint32_t Bit(Operation operation) const { return 1u << static_cast<uint32_t>(operation); }
  void* Begin(Operation operation);

  const int32_t replica_;
  grpc::ClientContext context_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> rpc_;
  Event events_[5];
  uint32_t pending_ = 0;  // a bit for each operation in flight
  State state_ = State::kOpening;
  absl::Status status_;
  grpc::Status finish_status_;
  void PostRead();
  void OnReply();
  void Await(uint64_t sequence);
  uint64_t TakeAwaited();

  grpc::ByteBuffer reply_;  // of the Read that is pending
  Reply arrived_;
  std::optional<grpc::ByteBuffer> held_;  // to be sent when what was written before has left
  std::array<uint64_t, kMostCalls> awaited_ = {};
  size_t num_awaited_ = 0;
  uint64_t last_sequence_ = 0;
  std::unique_ptr<ShmRingCaller> ring_;
  bool ring_opened_ = false;
};

}  // namespace banyan::trunk
