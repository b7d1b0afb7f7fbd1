#include "services/expert/server/ring_server.h"

#include <utility>

#include "common/base/status_macros.h"
#include "common/rpc/yielding_spin.h"

namespace banyan::expert {

using Clock = CallRunner::Clock;

RingServer::RingServer(const Options& options, std::unique_ptr<ShmRingHost> ring, std::string peer,
                       CallRunner* runner, std::function<void()> on_end)
    : options_(options), ring_(std::move(ring)), runner_(*runner), on_end_(std::move(on_end)) {
  origin_.peer = std::move(peer);
  thread_ = std::thread([this] { Loop(); });
}

RingServer::~RingServer() { End().IgnoreError(); }

absl::Status RingServer::End() {
  Close();
  if (thread_.joinable()) thread_.join();
  return status_;
}

void RingServer::Loop() {
  status_ = Serve();
  on_end_();
}

absl::Status RingServer::Serve() {
  YieldingSpin spin(absl::ToChronoNanoseconds(options_.spin));
  const auto look = [this] { return LookForAMicrosecond([this] { return ring_->HasRequest(); }); };
  while (!ring_->closed()) {
    if (!spin.Until(Clock::time_point::max(), look)) ring_->Sleep();
    if (ring_->closed()) break;
    if (ring_->HasRequest()) RETURN_IF_ERROR(AnswerOne(Clock::now()));
  }
  return absl::OkStatus();
}

absl::Status RingServer::AnswerOne(Clock::time_point arrival) {
  const absl::StatusOr<ForwardRequestView> request = ring_->TakeRequest();
  if (!request.ok()) {
    runner_.CountRefused(origin_, request.status());
    return request.status();
  }
  options_.received_bytes->Increment(static_cast<double>(
      request->expert_ids.size() + request->weights.size() + request->activations.size()));
  size_t reply_bytes = 0;
  ASSIGN_OR_RETURN(const ForwardResponseHeader answer,
                   runner_.Run(*request, arrival, &origin_, [&](size_t bytes) {
                     reply_bytes = bytes;
                     return ring_->Sums();
                   }));
  options_.sent_bytes->Increment(static_cast<double>(reply_bytes));
  ring_->Answer(answer);
  return absl::OkStatus();
}

}  // namespace banyan::expert
