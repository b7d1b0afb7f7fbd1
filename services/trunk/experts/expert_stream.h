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
#include <utility>

#include "absl/status/status.h"

namespace banyan::trunk {

// Owned by whoever polls its completion queue. Its events carry tags of type Event*; hand each to
// OnEvent. Up to kMostCalls calls are under way, which the host answers in order: Send writes first
// and then posts the Read, never the other way round (docs/performance.md). A Finish is pending
// from the start, so that the end of the stream is noticed while nothing is under way.
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

  // Starts the stream; `replica` is the owner's number for it. `queue` is borrowed.
  ExpertStream(int32_t replica, const std::shared_ptr<grpc::Channel>& channel,
               grpc::CompletionQueue* queue);

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

  // MaySend() must be true; sequences grow.
  void Send(const grpc::ByteBuffer& frame, uint64_t sequence);

  // What an event meant for the owner.
  enum class News : uint8_t { kNone, kReady, kReply, kOver };
  News OnEvent(Operation operation, bool ok);

  // After News::kReply, before the next event: the frame that arrived, unchecked, and the call that
  // it answers.
  struct Reply {
    grpc::ByteBuffer frame;
    uint64_t sequence = 0;
  };
  Reply TakeReply() { return std::exchange(arrived_, {}); }

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

  grpc::ByteBuffer reply_;  // of the Read that is pending
  Reply arrived_;
  std::optional<grpc::ByteBuffer> held_;  // to be sent when what was written before has left
  std::array<uint64_t, kMostCalls> awaited_ = {};
  size_t num_awaited_ = 0;
  uint64_t last_sequence_ = 0;
};

}  // namespace banyan::trunk
