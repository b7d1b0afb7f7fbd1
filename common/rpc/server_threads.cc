#include "common/rpc/server_threads.h"

#include <grpcpp/resource_quota.h>

#include "common/rpc/watch_calls.h"

namespace banyan {
namespace {
// Unary calls that return at once, and reflection streams.
constexpr int kPassing = 64;
}  // namespace

void LimitHandlerThreads(grpc::ServerBuilder& builder, int more) {
  grpc::ResourceQuota quota("handlers");
  quota.SetMaxThreads(2 * WatchCalls::kMaxCalls + kPassing + more);
  builder.SetResourceQuota(quota);
}

}  // namespace banyan
