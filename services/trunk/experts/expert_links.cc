#include "services/trunk/experts/expert_links.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {
using NextStatus = grpc::CompletionQueue::NextStatus;
}  // namespace

ExpertLinks::ExpertLinks(int32_t num_replicas, absl::Duration spin, Listener listener)
    : listener_(std::move(listener)),
      poller_(&queue_, absl::ToChronoNanoseconds(spin)),
      spin_(absl::ToChronoNanoseconds(spin)),
      streams_(static_cast<size_t>(num_replicas)) {}

ExpertLinks::~ExpertLinks() {
  const absl::Status stopped = absl::CancelledError("the trunk stops");
  for (auto& stream : streams_) {
    if (stream != nullptr) stream->Cancel(stopped);
  }
  if (event_.has_value()) Handle(*event_);
  for (auto& stream : streams_) {
    if (stream != nullptr) buried_.push_back(std::move(stream));
  }
  void* tag;
  bool ok;
  // A stream starts its last operation while its first one is handled: shut down after all of them.
  const auto is_quiet = [](const auto& stream) { return stream->quiet(); };
  while (!std::all_of(buried_.begin(), buried_.end(), is_quiet) && queue_.Next(&tag, &ok)) {
    const auto* event = static_cast<const ExpertStream::Event*>(tag);
    event->stream->OnEvent(event->operation, ok);
  }
  queue_.Shutdown();
  while (queue_.Next(&tag, &ok)) continue;
}

void ExpertLinks::Open(int32_t replica, std::shared_ptr<grpc::Channel> channel,
                       std::unique_ptr<ShmRingCaller> ring) {
  absl::MutexLock lock(&requests_mutex_);
  requests_.push_back({replica, std::move(channel), std::move(ring)});
  has_requests_.store(true, std::memory_order_release);
}

void ExpertLinks::Adopt() {
  std::vector<Request> requests;
  {
    absl::MutexLock lock(&requests_mutex_);
    requests.swap(requests_);
    has_requests_.store(false, std::memory_order_relaxed);
  }
  for (Request& request : requests) {
    auto& stream = streams_[static_cast<size_t>(request.replica)];
    CHECK(stream == nullptr);
    stream = std::make_unique<ExpertStream>(request.replica, request.channel, &queue_,
                                            std::move(request.ring));
  }
}

ExpertStream* ExpertLinks::RingAnswer() {
  for (const auto& stream : streams_) {
    if (stream != nullptr && stream->RingAnswered()) return stream.get();
  }
  return nullptr;
}

// One that waits for an answer there.
ExpertStream* ExpertLinks::RingAwaited() {
  for (const auto& stream : streams_) {
    if (stream != nullptr && stream->ring() != nullptr && !stream->awaited().empty()) {
      return stream.get();
    }
  }
  return nullptr;
}

bool ExpertLinks::PollQueue() {
  QueueEvent event = {};
  if (poller_.Poll(&event.tag, &event.ok) != grpc::CompletionQueue::GOT_EVENT) return false;
  event_ = event;
  return true;
}

ExpertStream* ExpertLinks::Next(Clock::time_point deadline, bool* any) {
  if (ExpertStream* stream = Poll(any); *any) return stream;
  ExpertStream* const awaited = RingAwaited();
  if (awaited == nullptr) {
    QueueEvent event = {};
    *any = poller_.Next(&event.tag, &event.ok, deadline) == grpc::CompletionQueue::GOT_EVENT;
    return *any ? Handle(event) : nullptr;
  }
  // Answers come in memory, everything else by the queue: both are looked at, the memory closely.
  // Asleep, the queue is looked at now and then; it tells only of streams that come and go.
  constexpr int kLooksPerPoll = 16;
  constexpr std::chrono::microseconds kNap(500);
  int looks = 0;
  const auto look = [&] {
    return LookForAMicrosecond([this] { return RingAnswer() != nullptr; }) ||
           (++looks % kLooksPerPoll == 0 && PollQueue());
  };
  if (!spin_.Until(deadline, look)) {
    while (Clock::now() < deadline && RingAnswer() == nullptr && !PollQueue()) {
      awaited->ring()->Wait(std::min<Clock::duration>(kNap, deadline - Clock::now()));
    }
  }
  return Poll(any);
}

ExpertStream* ExpertLinks::Poll(bool* any) {
  if (has_requests_.load(std::memory_order_acquire)) Adopt();
  ExpertStream* answered = RingAnswer();
  if (answered == nullptr && (event_.has_value() || PollQueue())) {
    // It may be the end of a stream whose last answers are there.
    answered = RingAnswer();
    if (answered == nullptr) {
      *any = true;
      return Handle(*std::exchange(event_, std::nullopt));
    }
  }
  *any = answered != nullptr;
  return answered;
}

ExpertStream* ExpertLinks::Handle(const QueueEvent& from_queue) {
  const bool ok = from_queue.ok;
  const ExpertStream::Event event = *static_cast<const ExpertStream::Event*>(from_queue.tag);
  ExpertStream* stream = event.stream;
  switch (stream->OnEvent(event.operation, ok)) {
    case ExpertStream::News::kReply:
      return stream;
    case ExpertStream::News::kReady:
      listener_(stream->replica(), absl::OkStatus());
      return nullptr;
    case ExpertStream::News::kOver: {
      const int32_t replica = stream->replica();
      const absl::Status status = stream->status();
      Bury(replica);
      listener_(replica, status);
      break;
    }
    case ExpertStream::News::kNone:
      break;
  }
  if (!buried_.empty()) {
    buried_.erase(std::remove_if(buried_.begin(), buried_.end(),
                                 [](const auto& buried) { return buried->quiet(); }),
                  buried_.end());
  }
  return nullptr;
}

void ExpertLinks::Drop(int32_t replica, const absl::Status& status) {
  ExpertStream* found = stream(replica);
  if (found == nullptr) return;
  found->Cancel(status);
  Bury(replica);
  listener_(replica, status);
}

void ExpertLinks::Bury(int32_t replica) {
  buried_.push_back(std::move(streams_[static_cast<size_t>(replica)]));
}

}  // namespace banyan::trunk
