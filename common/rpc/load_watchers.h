// The WatchLoad streams of a service, on the callback API: a message per change and at least one
// per second, until READY or FAILED.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/time/time.h"
#include "common/rpc/load_tracker.h"
#include "proto/common/v1/load.pb.h"

namespace banyan {

// Thread-safe. One thread of its own, which ends with the load. Must outlive the gRPC server whose
// streams it holds.
class LoadWatchers {
 public:
  explicit LoadWatchers(const LoadTracker& tracker);  // borrowed
  ~LoadWatchers();
  LoadWatchers(const LoadWatchers&) = delete;
  LoadWatchers& operator=(const LoadWatchers&) = delete;

  // What a WatchLoad handler returns; owns itself.
  grpc::ServerWriteReactor<common::v1::LoadProgress>* NewStream();

  // After READY or FAILED: false when a stream still has not been told at the deadline.
  bool WaitUntilTold(absl::Time deadline);

  // Ends open streams with UNAVAILABLE. Idempotent.
  void Stop();

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // streams hold it too
};

}  // namespace banyan
