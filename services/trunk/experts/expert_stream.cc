#include "services/trunk/experts/expert_stream.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/grpc_status.h"

namespace banyan::trunk {
namespace {
constexpr char kMethod[] = "/banyan.expert.v1.Experts/Forward";
}  // namespace

ExpertStream::ExpertStream(int32_t replica, const std::shared_ptr<grpc::Channel>& channel,
                           grpc::CompletionQueue* queue, std::unique_ptr<ShmRingCaller> ring)
    : replica_(replica),
      stub_(channel),
      rpc_(stub_.PrepareCall(&context_, kMethod, queue)),
      ring_(std::move(ring)) {
  if (ring_ != nullptr) context_.AddMetadata(kShmRingMetadataKey, ring_->offer());
  for (int i = 0; i < 5; ++i) events_[i] = {this, static_cast<Operation>(i)};
  rpc_->StartCall(Begin(Operation::kStart));
}

void* ExpertStream::Begin(Operation operation) {
  DCHECK((pending_ & Bit(operation)) == 0);
  pending_ |= Bit(operation);
  return &events_[static_cast<size_t>(operation)];
}

void ExpertStream::Await(uint64_t sequence) {
  CHECK(MaySend() && sequence > last_sequence_);
  last_sequence_ = sequence;
  awaited_[num_awaited_++] = sequence;
}

void ExpertStream::Post(const ForwardRequestHeader& header, std::span<const uint16_t> expert_ids,
                        std::span<const float> weights, std::string_view trace) {
  Await(header.sequence);
  ring_->Post(header, expert_ids, weights, trace);
}

void ExpertStream::Send(const grpc::ByteBuffer& frame, uint64_t sequence) {
  Await(sequence);
  if ((pending_ & Bit(Operation::kWrite)) != 0) {
    held_ = frame;
    return;
  }
  rpc_->Write(frame, Begin(Operation::kWrite));
  PostRead();
}

void ExpertStream::PostRead() {
  if ((pending_ & Bit(Operation::kRead)) == 0) rpc_->Read(&reply_, Begin(Operation::kRead));
}

bool ExpertStream::Awaits(uint64_t sequence) const {
  return std::find(awaited().begin(), awaited().end(), sequence) != awaited().end();
}

uint64_t ExpertStream::TakeAwaited() {
  CHECK(num_awaited_ > 0);
  const uint64_t sequence = awaited_[0];
  std::copy(awaited_.begin() + 1, awaited_.end(), awaited_.begin());
  --num_awaited_;
  return sequence;
}

ExpertStream::Reply ExpertStream::TakeReply() {
  if (!RingAnswered()) return std::exchange(arrived_, {});
  return {.frame = {}, .in_ring = ring_->TakeAnswer(), .sequence = TakeAwaited()};
}

void ExpertStream::OnReply() {
  arrived_ = {.frame = reply_, .in_ring = {}, .sequence = TakeAwaited()};
  reply_.Clear();
  // Of a call that is still held: its own Write comes first.
  if (num_awaited_ > (held_.has_value() ? 1 : 0)) PostRead();
}

ExpertStream::News ExpertStream::OnEvent(Operation operation, bool ok) {
  pending_ &= ~Bit(operation);
  switch (operation) {
    case Operation::kStart:
      if (ok) rpc_->ReadInitialMetadata(Begin(Operation::kMetadata));
      rpc_->Finish(&finish_status_, Begin(Operation::kFinish));
      return News::kNone;
    case Operation::kMetadata:
      // A host that refuses the stream sends no metadata of its own, only the status that follows.
      if (!ok || state_ != State::kOpening ||
          context_.GetServerInitialMetadata().count(kForwardMetadataKey) == 0) {
        return News::kNone;
      }
      state_ = State::kReady;
      ring_opened_ =
          ring_ != nullptr && context_.GetServerInitialMetadata().count(kShmRingMetadataKey) != 0;
      if (!ring_opened_) ring_.reset();
      return News::kReady;
    case Operation::kWrite:  // when it failed the status follows
      if (ok && state_ == State::kReady && held_.has_value()) {
        const grpc::ByteBuffer frame = *std::exchange(held_, std::nullopt);
        rpc_->Write(frame, Begin(Operation::kWrite));
        PostRead();
      }
      return News::kNone;
    case Operation::kRead:
      // A frame that nobody asked for cannot come: there is no Read for it.
      if (!ok || state_ != State::kReady) return News::kNone;
      OnReply();
      return News::kReply;
    case Operation::kFinish:
      break;
  }
  if (state_ == State::kOver) return News::kNone;
  state_ = State::kOver;
  status_ = finish_status_.ok() ? absl::UnavailableError("the host ended the stream")
                                : FromGrpc(finish_status_);
  return News::kOver;
}

void ExpertStream::Cancel(const absl::Status& status) {
  if (state_ == State::kOver) return;
  state_ = State::kOver;
  status_ = status;
  context_.TryCancel();
}

}  // namespace banyan::trunk
