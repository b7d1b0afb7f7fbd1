#include "services/client/load/load_run.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/rpc/grpc_status.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;

constexpr absl::Duration kProgressInterval = absl::Milliseconds(250);

// One stream: an operation after the other, each of which ends with an event of the queue that has
// the call as its tag.
class Call {
 public:
  Call(inference::v1::Inference::Stub& stub, const GenerateRequest& request, absl::Time sent,
       const LoadOptions& options, int64_t index, grpc::CompletionQueue* queue)
      : options_(options) {
    outcome_.index = index;
    outcome_.generation.sent = sent;
    if (options.timeout != absl::InfiniteDuration()) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
    }
    reader_ = stub.AsyncGenerate(&context_, request, queue, this);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Whether there is another operation.
  bool OnEvent(bool ok) {
    if (state_ == State::kEnding) {
      Conclude();
      return false;
    }
    if (state_ == State::kReading && ok) {
      outcome_.status = outcome_.generation.Add(response_, absl::Now());
      if (!outcome_.status.ok()) {
        context_.TryCancel();
        ok = false;
      }
    }
    state_ = ok ? State::kReading : State::kEnding;
    if (ok) {
      reader_->Read(&response_, this);
    } else {
      reader_->Finish(&status_, this);
    }
    return true;
  }

  LoadOutcome TakeOutcome() { return std::move(outcome_); }

 private:
  enum class State : uint8_t { kStarting, kReading, kEnding };

  void Conclude() {
    outcome_.ended = absl::Now();
    if (outcome_.status.ok() && !status_.ok()) {
      outcome_.status = ExplainCall(FromGrpc(status_), options_.address);
    }
    if (outcome_.status.ok() && !outcome_.generation.has_finished) {
      outcome_.status = StatusF(absl::StatusCode::kInternal,
                                "{} ended the stream without its last event", options_.address);
    }
  }

  const LoadOptions& options_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReader<GenerateResponse>> reader_;
  State state_ = State::kStarting;
  GenerateResponse response_;
  grpc::Status status_;
  LoadOutcome outcome_;
};

}  // namespace

std::vector<double> PoissonArrivals(double rate, int64_t count, uint64_t seed) {
  CHECK(rate > 0);
  std::mt19937_64 random(seed);
  std::vector<double> arrivals;
  double at = 0;
  for (int64_t i = 0; i < count; ++i) {
    // 53 bits: uniform in [0, 1), the same on every machine (std::exponential_distribution is not).
    const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
    at += -std::log1p(-uniform) / rate;
    arrivals.push_back(at);
  }
  return arrivals;
}

std::vector<LoadOutcome> RunLoad(const std::shared_ptr<grpc::Channel>& channel,
                                 const LoadOptions& options,
                                 const std::function<GenerateRequest(int64_t)>& make_request,
                                 const std::function<void(int64_t)>& progress) {
  auto stub = inference::v1::Inference::NewStub(channel);
  const bool open_loop = options.rate > 0;
  const std::vector<double> arrivals =
      open_loop ? PoissonArrivals(options.rate, options.num_requests, options.seed)
                : std::vector<double>();
  // Not the callback API, whose threads sleep for 100 ms when nothing came for a second: the first
  // token of a long prompt would be seen that much later.
  grpc::CompletionQueue queue;
  std::vector<std::unique_ptr<Call>> calls(static_cast<size_t>(options.num_requests));
  std::vector<LoadOutcome> outcomes(static_cast<size_t>(options.num_requests));
  const absl::Time begin = absl::Now();
  int64_t num_started = 0;
  int64_t num_ended = 0;
  void* tag = nullptr;
  bool ok = false;
  while (num_ended < options.num_requests) {
    absl::Time next_due = absl::InfiniteFuture();
    while (num_started < options.num_requests) {
      const absl::Time now = absl::Now();
      absl::Time sent = now;
      if (open_loop) {
        sent = begin + absl::Seconds(arrivals[static_cast<size_t>(num_started)]);
        if (sent > now) {
          next_due = sent;
          break;
        }
      } else if (num_started - num_ended >= options.concurrency) {
        break;
      }
      calls[static_cast<size_t>(num_started)] = std::make_unique<Call>(
          *stub, make_request(num_started), sent, options, num_started, &queue);
      ++num_started;
    }
    const absl::Time deadline = std::min(next_due, absl::Now() + kProgressInterval);
    if (queue.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline)) ==
        grpc::CompletionQueue::GOT_EVENT) {
      auto* const call = static_cast<Call*>(tag);
      if (call->OnEvent(ok)) continue;
      LoadOutcome outcome = call->TakeOutcome();
      const auto index = static_cast<size_t>(outcome.index);
      outcomes[index] = std::move(outcome);
      calls[index].reset();
      ++num_ended;
    }
    progress(num_ended);
  }
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) continue;
  return outcomes;
}

}  // namespace banyan::client
