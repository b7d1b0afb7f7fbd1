#include "common/rpc/health_service.h"

#include <utility>

#include "common/base/strings.h"

namespace banyan {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

std::set<std::string> WithWholeServer(std::vector<std::string> services) {
  std::set<std::string> all(services.begin(), services.end());
  all.insert("");
  return all;
}

bool IsServing(uint64_t version) { return version % 2 == 0; }

HealthCheckResponse::ServingStatus StateAt(uint64_t version) {
  return IsServing(version) ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

}  // namespace

HealthService::HealthService(std::vector<std::string> services)
    : services_(WithWholeServer(std::move(services))) {}

void HealthService::SetServing(bool serving) {
  absl::MutexLock lock(&mutex_);
  if (IsServing(version_) != serving) ++version_;
}

bool HealthService::serving() const {
  absl::MutexLock lock(&mutex_);
  return IsServing(version_);
}

uint64_t HealthService::AwaitChange(uint64_t seen, absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  const auto changed = [this, seen]()
                           ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return version_ != seen; };
  mutex_.AwaitWithDeadline(absl::Condition(&changed), deadline);
  return version_;
}

grpc::Status HealthService::Check(grpc::ServerContext* /*context*/,
                                  const HealthCheckRequest* request,
                                  HealthCheckResponse* response) {
  if (!Known(request->service())) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND,
                        fmt::format("no service \"{}\" here", Printable(request->service())));
  }
  absl::MutexLock lock(&mutex_);
  response->set_status(StateAt(version_));
  return grpc::Status::OK;
}

grpc::Status HealthService::Watch(grpc::ServerContext* context, const HealthCheckRequest* request,
                                  grpc::ServerWriter<HealthCheckResponse>* writer) {
  const bool known = Known(request->service());
  return watches_.Serve(
      context, writer,
      [this, known](uint64_t seen, absl::Time deadline) -> WatchCalls::State<HealthCheckResponse> {
        HealthCheckResponse response;
        // As the protocol says: a service that may come later is watched all the same. Ours never
        // do.
        if (!known) {
          if (seen != 0) absl::SleepFor(deadline - absl::Now());
          response.set_status(HealthCheckResponse::SERVICE_UNKNOWN);
          return {1, response};
        }
        const uint64_t version = AwaitChange(seen, deadline);
        response.set_status(StateAt(version));
        return {version, response};
      });
}

}  // namespace banyan
