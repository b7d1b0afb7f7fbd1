// Lifecycle of an expert host: listen, load, serve, drain, stop.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/stop_signals.h"
#include "services/expert/expert_options.h"

namespace banyan::expert {

// Owned by one thread.
class ExpertServer {
 public:
  // Listens; clients see health NOT_SERVING and WatchLoad from now on. kUnimplemented: a CPU tier
  // this machine lacks; kUnavailable: an address that cannot be bound.
  static absl::StatusOr<std::unique_ptr<ExpertServer>> Create(const ExpertOptions& options);
  ~ExpertServer();

  // With the port that was really taken.
  const std::string& address() const;

  // Loads in the background and serves until `stop`; then drains and stops. Errors are those of
  // the load, told to the watchers first.
  absl::Status Run(StopSignals& stop);

 private:
  class Impl;
  explicit ExpertServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::expert
