// The WatchLoad method of a service: a message per change and at least one per second, until READY
// or FAILED.
#pragma once

#include "common/rpc/load_tracker.h"
#include "common/rpc/watch_calls.h"
#include "proto/common/v1/load.pb.h"

namespace banyan {

// Thread-safe. Outlives the gRPC server whose calls it serves.
class LoadWatchers {
 public:
  explicit LoadWatchers(const LoadTracker& tracker) : tracker_(tracker) {}  // borrowed

  // A WatchLoad handler's body: returns when the stream is over (WatchCalls::Serve).
  grpc::Status Serve(grpc::ServerContext* context,
                     grpc::ServerWriter<common::v1::LoadProgress>* writer);

  // After READY or FAILED: false when a stream still has not been told at the deadline.
  bool WaitUntilTold(absl::Time deadline) { return calls_.WaitUntilNone(deadline); }

  // Ends open streams with UNAVAILABLE. Idempotent.
  void Stop() { calls_.Stop(); }

 private:
  const LoadTracker& tracker_;
  WatchCalls calls_{/*longest_silence=*/absl::Seconds(1)};
};

}  // namespace banyan
