// Runs expert calls whichever way they came, frames or shared memory: checks, computes, counts.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/registry.h"
#include "common/rpc/expert_frame.h"
#include "services/expert/runtime/expert_executor.h"

namespace banyan::expert {

// What is remembered of the peer of a Forward stream. Owned by whoever runs its calls.
struct CallOrigin {
  std::string peer;
  std::optional<uint64_t> last_sequence;
};

// Thread-safe: the executor runs one call at a time, further ones wait.
class CallRunner {
 public:
  using Clock = std::chrono::steady_clock;

  explicit CallRunner(MetricsRegistry& metrics);

  // Borrowed for good.
  void SetExecutor(ExpertExecutor* executor);
  // nullptr before.
  ExpertExecutor* executor() const { return executor_.load(std::memory_order_acquire); }

  // Answers a parsed request that arrived then. `out(bytes)` gives memory for the sums, 64-byte
  // aligned. kInvalidArgument says which rule the request breaks; it then counts as refused.
  absl::StatusOr<ForwardResponseHeader> Run(const ForwardRequestView& request,
                                            Clock::time_point arrival, CallOrigin* origin,
                                            absl::FunctionRef<std::byte*(size_t bytes)> out);

  // The same for a request that could not be parsed.
  void CountRefused(const CallOrigin& origin, const absl::Status& status);

 private:
  absl::StatusOr<ForwardResponseHeader> Answer(const ForwardRequestView& request,
                                               Clock::time_point arrival, CallOrigin* origin,
                                               absl::FunctionRef<std::byte*(size_t bytes)> out);

  HotCounter& calls_;
  HotCounter& rows_;
  prometheus::Counter& refused_;
  HotHistogram& queue_;
  HotHistogram& compute_;
  std::atomic<ExpertExecutor*> executor_{nullptr};
  absl::Mutex running_;
};

}  // namespace banyan::expert
