// Lifecycle of the trunk: listen, load, serve, drain, stop.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/stop_signals.h"
#include "services/trunk/trunk_options.h"

namespace banyan::trunk {

// Owned by one thread.
class InferenceServer {
 public:
  // Listens; clients see health NOT_SERVING and WatchLoad from now on. kUnavailable: an address
  // that cannot be bound.
  static absl::StatusOr<std::unique_ptr<InferenceServer>> Create(const TrunkOptions& options);
  ~InferenceServer();

  // With the port that was really taken.
  const std::string& address() const;

  // Loads in the background and serves until `stop`; then lets requests under way finish within
  // drain_timeout and stops. A second signal ends the process at once. Errors are those of the
  // load, told to the watchers first, and the loss of the device: health is NOT_SERVING before any
  // request hears of that.
  absl::Status Run(StopSignals& stop);

 private:
  class Impl;
  explicit InferenceServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::trunk
