// Everything that `banyan top` shows, read from a trunk and its experts.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/client/connection/server_status.h"
#include "services/client/overview/figures.h"

namespace banyan::client {

struct Overview {
  std::string address;
  absl::Time at;
  absl::Status problem;                // why `server` is absent
  std::optional<ServerStatus> server;  // by its RPCs
  std::string metrics_problem;         // why figures.has_trunk is false; "" when it is true
  Figures figures;
};

// Owned by one thread.
class OverviewReader {
 public:
  struct Options {
    std::string server;   // of the trunk's RPCs
    std::string metrics;  // of the trunk's metrics; "": none
    // Metrics of the expert of shard 0, 1, ... Empty: the trunk's port + 10 and up, as `banyan
    // serve` gives them, as far as they answer.
    std::vector<std::string> expert_metrics;
    absl::Duration patience = absl::Seconds(1);  // for one call
  };
  explicit OverviewReader(Options options);

  // Reads once; figures are of the time since the call before.
  Overview Read();

 private:
  std::optional<ServerStatus> ReadServer(absl::Status* problem);
  std::vector<std::optional<MetricsPage>> ReadExperts() const;

  const Options options_;
  std::shared_ptr<grpc::Channel> channel_;  // kept while it works
  MetricsReading before_;
};

}  // namespace banyan::client
