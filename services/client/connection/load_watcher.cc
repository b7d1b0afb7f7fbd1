#include "services/client/connection/load_watcher.h"

#include <functional>
#include <utility>

#include "absl/time/clock.h"
#include "common/rpc/grpc_status.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "proto/inference/v1/inference.grpc.pb.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {
namespace {

using common::v1::LoadProgress;

// Hands every message to `take` until it says false or the stream ends.
grpc::Status Follow(const std::shared_ptr<grpc::Channel>& channel, ServiceKind kind,
                    grpc::ClientContext& context,
                    const std::function<bool(const LoadProgress&)>& take) {
  const auto drain = [&](auto reader) {
    LoadProgress progress;
    while (reader->Read(&progress)) {
      if (!take(progress)) {
        context.TryCancel();
        break;
      }
    }
    return reader->Finish();
  };
  if (kind == ServiceKind::kTrunk) {
    auto stub = inference::v1::Inference::NewStub(channel);
    return drain(stub->WatchLoad(&context, inference::v1::WatchLoadRequest()));
  }
  auto stub = expert::v1::Experts::NewStub(channel);
  return drain(stub->WatchLoad(&context, expert::v1::WatchLoadRequest()));
}

}  // namespace

std::string LoadPhaseName(LoadProgress::Phase phase) {
  switch (phase) {
    case LoadProgress::HEADERS:
      return "headers";
    case LoadProgress::PLAN:
      return "plan";
    case LoadProgress::READ:
      return "read";
    case LoadProgress::CONVERT:
      return "convert";
    case LoadProgress::VERIFY:
      return "verify";
    case LoadProgress::WARM:
      return "warm";
    case LoadProgress::WAIT:
      return "wait";
    case LoadProgress::READY:
      return "ready";
    case LoadProgress::FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

absl::StatusOr<LoadProgress> ReadLoad(const std::shared_ptr<grpc::Channel>& channel,
                                      ServiceKind kind, absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  LoadProgress first;
  bool has_first = false;
  const grpc::Status status = Follow(channel, kind, context, [&](const LoadProgress& progress) {
    first = progress;
    has_first = true;
    return false;
  });
  if (has_first) return first;
  if (!status.ok()) return FromGrpc(status);
  return absl::UnavailableError("the stream ended before the first report");
}

LoadWatcher::LoadWatcher(std::string address, ServiceKind kind)
    : address_(std::move(address)), kind_(kind), thread_([this] { Watch(); }) {}

LoadWatcher::~LoadWatcher() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  thread_.join();
}

LoadWatcher::State LoadWatcher::Get() const {
  absl::MutexLock lock(&mutex_);
  return state_;
}

void LoadWatcher::Reset() {
  absl::MutexLock lock(&mutex_);
  state_ = State();
  ++generation_;
  if (call_ != nullptr) call_->TryCancel();
}

void LoadWatcher::Take(const LoadProgress& progress, int64_t generation) {
  absl::MutexLock lock(&mutex_);
  if (generation != generation_) return;
  state_.connected = true;
  state_.progress = progress;
}

void LoadWatcher::Watch() {
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(address_);
  for (;;) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);  // until the service listens, or ~LoadWatcher cancels
    int64_t generation = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      generation = generation_;
      call_ = &context;
    }
    Follow(channel, kind_, context, [&](const LoadProgress& progress) {
      Take(progress, generation);
      return true;
    });
    absl::MutexLock lock(&mutex_);
    call_ = nullptr;
    // The stream has ended: after READY or FAILED that is how it should be, and the state stays
    // until Reset; before, the service went away and is asked again.
    const auto settled = [this] {
      const LoadProgress::Phase phase = state_.progress.phase();
      return phase == LoadProgress::READY || phase == LoadProgress::FAILED;
    };
    const auto wake = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return stopping_ || generation_ != generation;
    };
    if (settled()) {
      mutex_.Await(absl::Condition(&wake));
    } else {
      mutex_.AwaitWithTimeout(absl::Condition(&wake), absl::Milliseconds(50));
    }
  }
}

}  // namespace banyan::client
