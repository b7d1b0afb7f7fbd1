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

}  // namespace

HealthService::HealthService(std::vector<std::string> services)
    : services_(WithWholeServer(std::move(services))) {}

HealthCheckResponse HealthService::State() const {
  HealthCheckResponse response;
  response.set_status(serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  return response;
}

void HealthService::SetServing(bool serving) {
  absl::MutexLock lock(&mutex_);
  if (serving_ == serving) return;
  serving_ = serving;
  for (Reactor* watcher : watchers_) watcher->Send(State());
}

bool HealthService::serving() const {
  absl::MutexLock lock(&mutex_);
  return serving_;
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  if (Known(request->service())) {
    absl::MutexLock lock(&mutex_);
    *response = State();
  } else {
    reactor->Finish(
        grpc::Status(grpc::StatusCode::NOT_FOUND,
                     fmt::format("no service \"{}\" here", Printable(request->service()))));
    return reactor;
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext* /*context*/, const HealthCheckRequest* request) {
  auto* const reactor = new Reactor([this](Reactor* over) {
    absl::MutexLock lock(&mutex_);
    watchers_.erase(over);
  });
  absl::MutexLock lock(&mutex_);
  HealthCheckResponse first = State();
  // As the protocol says: a service that may come later is watched all the same. Ours never do.
  if (!Known(request->service())) {
    first.set_status(HealthCheckResponse::SERVICE_UNKNOWN);
  } else {
    watchers_.insert(reactor);
  }
  reactor->Send(std::move(first));
  return reactor;
}

}  // namespace banyan
