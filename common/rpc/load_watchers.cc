#include "common/rpc/load_watchers.h"

namespace banyan {

using common::v1::LoadProgress;

grpc::Status LoadWatchers::Serve(grpc::ServerContext* context,
                                 grpc::ServerWriter<LoadProgress>* writer) {
  return calls_.Serve(
      context, writer,
      [this](uint64_t seen, absl::Time deadline) -> WatchCalls::State<LoadProgress> {
        // The version first: a change in between is told by the next message.
        const uint64_t version = tracker_.AwaitChange(seen, deadline);
        const LoadProgress progress = tracker_.Get();
        return {version, progress, LoadTracker::IsLast(progress.phase())};
      });
}

}  // namespace banyan
