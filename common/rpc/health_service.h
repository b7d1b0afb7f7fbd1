// grpc.health.v1.Health. gRPC's built-in one answers SERVING for an instant after the server has
// started; this one starts with NOT_SERVING.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/watch_reactor.h"
#include "proto/health/v1/health.grpc.pb.h"

namespace banyan {

// One state for the whole server ("") and the services named. Thread-safe; outlives the gRPC server
// it is registered with. Switch gRPC's own off: grpc::EnableDefaultHealthCheckService(false).
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  explicit HealthService(std::vector<std::string> services);

  void SetServing(bool serving);
  bool serving() const;

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  using Reactor = WatchReactor<grpc::health::v1::HealthCheckResponse>;
  bool Known(const std::string& service) const { return services_.count(service) != 0; }
  grpc::health::v1::HealthCheckResponse State() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const std::set<std::string> services_;
  mutable absl::Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<Reactor*> watchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan
