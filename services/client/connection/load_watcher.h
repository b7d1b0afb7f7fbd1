// Follows the load of one service from a thread of its own.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/common/v1/load.pb.h"

namespace banyan::client {

enum class ServiceKind { kTrunk, kExpert };

// "headers", "plan", "read", ..., "ready", "failed"
std::string LoadPhaseName(common::v1::LoadProgress::Phase phase);

// The present state, by one message of WatchLoad.
absl::StatusOr<common::v1::LoadProgress> ReadLoad(const std::shared_ptr<grpc::Channel>& channel,
                                                  ServiceKind kind, absl::Time deadline);

// Connects again and again until it is destroyed: the service may start later, or anew.
// Thread-safe.
class LoadWatcher {
 public:
  LoadWatcher(std::string address, ServiceKind kind);
  ~LoadWatcher();

  struct State {
    bool connected = false;  // the watched service answers
    common::v1::LoadProgress progress;
  };
  State Get() const;
  // Forgets what a previous run of the service said.
  void Reset();

 private:
  void Watch();
  void Take(const common::v1::LoadProgress& progress, int64_t generation);

  const std::string address_;
  const ServiceKind kind_;
  mutable absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;  // grows with Reset
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace banyan::client
