// Puts load on a server: many Generate calls at once, in a closed or an open loop.
#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/client/connection/generation.h"

namespace banyan::client {

struct LoadOptions {
  std::string address;  // for messages
  int64_t num_requests = 1;
  int32_t concurrency = 1;  // closed loop: this many at a time
  double rate = 0;          // above 0: open loop, Poisson arrivals per second, whatever comes back
  uint64_t seed = 0;        // of the arrivals
  absl::Duration timeout = absl::InfiniteDuration();  // of one request
};

struct LoadOutcome {
  int64_t index = 0;  // of the request
  absl::Status status;
  Generation generation{absl::InfinitePast()};  // as far as it came
  absl::Time ended;
};

// Ascending, in seconds from the start: the first arrival is one gap after it. Same seed, same
// times.
std::vector<double> PoissonArrivals(double rate, int64_t count, uint64_t seed);

// Sends `make_request(0)` .. `make_request(num_requests - 1)` and waits for all of them; outcomes
// in order of index. In the open loop a request counts as sent when it was due, so that time it
// spent waiting for this client is in its latencies. `progress` sees the number that ended, on this
// thread, a few times a second.
std::vector<LoadOutcome> RunLoad(
    const std::shared_ptr<grpc::Channel>& channel, const LoadOptions& options,
    const std::function<inference::v1::GenerateRequest(int64_t)>& make_request,
    const std::function<void(int64_t)>& progress);

}  // namespace banyan::client
