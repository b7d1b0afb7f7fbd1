// Serves the calls of one stream that come through shared memory (common/rpc/shm_ring.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/metrics/registry.h"
#include "common/rpc/shm_ring.h"
#include "services/expert/server/call_runner.h"

namespace banyan::expert {

// One thread, which waits as a completion queue's does: it polls for `spin` after a call and then
// sleeps.
class RingServer {
 public:
  struct Options {
    absl::Duration spin;
    HotCounter* received_bytes = nullptr;
    HotCounter* sent_bytes = nullptr;
  };

  // `runner` and the counters are borrowed. on_end: once, when the thread takes no further request:
  // closed, or the peer broke a rule, which End() then says. It is called by the thread as the last
  // thing it does.
  RingServer(const Options& options, std::unique_ptr<ShmRingHost> ring, std::string peer,
             CallRunner* runner, std::function<void()> on_end);
  ~RingServer();
  RingServer(const RingServer&) = delete;
  RingServer& operator=(const RingServer&) = delete;

  // Ends it after the answer under way. Any thread.
  void Close() { ring_->Close(); }

  // Closes it and waits for the thread; the rule that was broken, if one was.
  absl::Status End();

 private:
  void Loop();
  absl::Status Serve();
  absl::Status AnswerOne(CallRunner::Clock::time_point arrival);

  const Options options_;
  const std::unique_ptr<ShmRingHost> ring_;
  CallRunner& runner_;
  const std::function<void()> on_end_;
  CallOrigin origin_;
  absl::Status status_;
  std::thread thread_;
};

}  // namespace banyan::expert
