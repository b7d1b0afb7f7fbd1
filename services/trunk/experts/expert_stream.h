// One Forward stream to one replica of a shard.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"

namespace banyan::trunk {

// Owned by whoever polls its completion queue. Its events carry tags of type Event*; hand each to
// OnEvent. At most one call is under way: Send writes first and then posts the Read, never the
// other way round (docs/performance.md). A Finish is pending from the start, so that the end of the
// stream is noticed while nothing is under way.
class ExpertStream {
 public:
  enum class Operation : uint8_t { kStart, kMetadata, kWrite, kRead, kFinish };
  struct Event {
    ExpertStream* stream;
    Operation operation;
  };
  enum class State : uint8_t {
    kOpening,  // the host has not taken the stream yet
    kReady,    // a call may be sent
    kBusy,     // a reply is awaited
    kOver,     // see status()
  };

  // Starts the stream; `replica` is the owner's number for it. `queue` is borrowed.
  ExpertStream(int32_t replica, const std::shared_ptr<grpc::Channel>& channel,
               grpc::CompletionQueue* queue);

  int32_t replica() const { return replica_; }
  State state() const { return state_; }
  // No event will follow: the stream may be destroyed.
  bool quiet() const { return pending_ == 0; }
  // Of a stream that is over.
  const absl::Status& status() const { return status_; }
  uint64_t sequence() const { return sequence_; }  // of the last call

  // kReady to kBusy. Sequences must grow.
  void Send(const grpc::ByteBuffer& frame, uint64_t sequence);

  // What an event meant for the owner.
  enum class News : uint8_t { kNone, kReady, kReply, kOver };
  News OnEvent(Operation operation, bool ok);

  // After News::kReply: the frame that arrived, unchecked.
  grpc::ByteBuffer TakeReply() { return std::move(reply_); }

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
  grpc::ByteBuffer reply_;
  bool replied_ = false;
  uint64_t sequence_ = 0;
};

}  // namespace banyan::trunk
