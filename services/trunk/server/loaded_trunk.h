// Everything between a checkpoint directory and an engine that answers.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/metrics/registry.h"
#include "common/rpc/load_tracker.h"
#include "services/trunk/server/serving_model.h"
#include "services/trunk/trunk_options.h"

namespace banyan::trunk {

// Owns checkpoint, weights, decoder, expert connections and engine, and takes them down in order.
// Thread-compatible; the engine and the model it lends are thread-safe.
class LoadedTrunk {
 public:
  // Reads, checks and places the trunk's part of the checkpoint, connects the expert shards and
  // waits for them, then lets the model compute a token. `tracker` hears HEADERS, PLAN, READ, WAIT
  // (which shards are missing) and WARM. `metrics` and `tracker` are borrowed. kCancelled once
  // `stopping` says so; kFailedPrecondition: expert hosts that do not fit the model or each other,
  // for 3 s; else errors of the files (checkpoint.h, tensor_inventory.h) and of the plan. Later
  // `on_fault` is told if the device is lost (engine.h).
  static absl::StatusOr<std::unique_ptr<LoadedTrunk>> Load(
      const TrunkOptions& options, std::function<bool()> stopping,
      std::function<void(const absl::Status&)> on_fault, LoadTracker* tracker,
      MetricsRegistry* metrics);
  ~LoadedTrunk();
  LoadedTrunk(const LoadedTrunk&) = delete;
  LoadedTrunk& operator=(const LoadedTrunk&) = delete;

  const ServingModel& model() const;
  // OK when every shard has a usable replica. Thread-safe.
  absl::Status ExpertsReady() const;

 private:
  class Impl;
  explicit LoadedTrunk(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::trunk
