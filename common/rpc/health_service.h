// grpc.health.v1.Health. gRPC's built-in one answers SERVING for an instant after the server has
// started; this one starts with NOT_SERVING.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/watch_calls.h"
#include "proto/health/v1/health.grpc.pb.h"

namespace banyan {

// One state for the whole server ("") and the services named. Thread-safe; outlives the gRPC server
// it is registered with. Switch gRPC's own off: grpc::EnableDefaultHealthCheckService(false).
class HealthService final : public grpc::health::v1::Health::Service {
 public:
  explicit HealthService(std::vector<std::string> services);

  void SetServing(bool serving);
  bool serving() const;
  // Ends the Watch streams; before the server is shut down.
  void Stop() { watches_.Stop(); }

  grpc::Status Check(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override;
  grpc::Status Watch(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::ServerWriter<grpc::health::v1::HealthCheckResponse>* writer) override;

 private:
  bool Known(const std::string& service) const { return services_.count(service) != 0; }
  uint64_t AwaitChange(uint64_t seen, absl::Time deadline) const;

  const std::set<std::string> services_;
  WatchCalls watches_;
  mutable absl::Mutex mutex_;
  // Changes of the state, plus one: odd while not serving.
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace banyan
