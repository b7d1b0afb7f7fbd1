#include "services/client/load/load_run.h"

#include <cmath>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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

// The calls that ended and wait to be taken by the loop. Thread-safe.
class EndedCalls {
 public:
  void Add(int64_t index) {
    absl::MutexLock lock(&mutex_);
    ended_.push_back(index);
  }
  // What ended since the last Take, after waiting for a first one until the deadline.
  std::vector<int64_t> Take(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    const auto some = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !ended_.empty(); };
    mutex_.AwaitWithDeadline(absl::Condition(&some), deadline);
    return std::exchange(ended_, {});
  }

 private:
  absl::Mutex mutex_;
  std::vector<int64_t> ended_ ABSL_GUARDED_BY(mutex_);
};

// One stream. gRPC runs its reactions one after the other; OnDone is the last.
class Call final : public grpc::ClientReadReactor<GenerateResponse> {
 public:
  Call(inference::v1::Inference::Stub& stub, GenerateRequest request, absl::Time sent,
       const LoadOptions& options, int64_t index, EndedCalls& ended)
      : options_(options), request_(std::move(request)), ended_(ended) {
    outcome_.index = index;
    outcome_.generation.sent = sent;
    if (options.timeout != absl::InfiniteDuration()) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
    }
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    outcome_.status = outcome_.generation.Add(response_, absl::Now());
    if (!outcome_.status.ok()) {
      context_.TryCancel();
      return;
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    outcome_.ended = absl::Now();
    if (outcome_.status.ok() && !status.ok()) {
      outcome_.status = ExplainCall(FromGrpc(status), options_.address);
    }
    if (outcome_.status.ok() && !outcome_.generation.has_finished) {
      outcome_.status = StatusF(absl::StatusCode::kInternal,
                                "{} ended the stream without its last event", options_.address);
    }
    ended_.Add(outcome_.index);
  }

  LoadOutcome TakeOutcome() { return std::move(outcome_); }

 private:
  const LoadOptions& options_;
  GenerateRequest request_;
  EndedCalls& ended_;
  grpc::ClientContext context_;
  GenerateResponse response_;
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
  EndedCalls ended;
  std::vector<std::unique_ptr<Call>> calls(static_cast<size_t>(options.num_requests));
  std::vector<LoadOutcome> outcomes(static_cast<size_t>(options.num_requests));
  const absl::Time begin = absl::Now();
  int64_t num_started = 0;
  int64_t num_ended = 0;
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
          *stub, make_request(num_started), sent, options, num_started, ended);
      ++num_started;
    }
    for (int64_t index : ended.Take(std::min(next_due, absl::Now() + kProgressInterval))) {
      std::unique_ptr<Call>& call = calls[static_cast<size_t>(index)];
      outcomes[static_cast<size_t>(index)] = call->TakeOutcome();
      call.reset();
      ++num_ended;
    }
    progress(num_ended);
  }
  return outcomes;
}

}  // namespace banyan::client
