// The data plane of an expert host: every Forward stream, served by one completion queue and
// exactly one thread, which reads a frame, runs the call and posts the reply. Why one thread, and
// what spinning is worth: docs/performance.md. Large calls, of which a trunk may have two under
// way, are run by a second thread, so that the first can read and write meanwhile
// (docs/adr/two-halves.md).
#pragma once

#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "common/metrics/registry.h"
#include "common/rpc/memory_inbox.h"
#include "services/expert/runtime/expert_executor.h"

namespace banyan::expert {

// Life: construct before ServerBuilder::BuildAndStart, Start after it, SetExecutor once the model
// is loaded; at the end Drain, grpc::Server::Shutdown, Stop. All public methods are thread-safe.
//
//   Experts::WithRawMethod_Forward<...> service;
//   ForwardStreamServer forward({}, builder, metrics);
//   auto server = builder.RegisterService(&service).BuildAndStart();
//   forward.Start([&service](auto... args) { service.RequestForward(args...); });
//
// Rules of a stream: `sequence` grows from frame to frame; requests are answered in order, one at a
// time. A frame that breaks a rule ends its stream with INVALID_ARGUMENT and a message that says
// which; other streams and the service go on. A peer that does not read its replies is not read
// from: a stream holds at most two requests and two replies.
class ForwardStreamServer {
 public:
  struct Options {
    // How long the thread polls after the last event before it sleeps in the kernel. It yields its
    // CPU between polls and stops early when others want the CPU.
    absl::Duration spin = absl::Milliseconds(1);
    int32_t max_streams = 32;  // further ones get RESOURCE_EXHAUSTED
    // Requests of so many bytes are run by the second thread: 8 MB each way take milliseconds to
    // read and write. Below it the hand-over would cost more than it gives.
    size_t aside_bytes = size_t{1} << 20;
    // Where trunks of this machine send memory for calls; borrowed until Stop. Null: nowhere.
    MemoryInbox* inbox = nullptr;
  };

  using RawStream = grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
  // RequestForward of the generated service whose Forward is raw.
  using RequestForward =
      std::function<void(grpc::ServerContext*, RawStream*, grpc::CompletionQueue*,
                         grpc::ServerCompletionQueue*, void* tag)>;

  // Adds the completion queue to `builder`. `metrics` is borrowed.
  ForwardStreamServer(const Options& options, grpc::ServerBuilder& builder,
                      MetricsRegistry& metrics);
  // Stops. When Start has been called, grpc::Server::Shutdown must have been too.
  ~ForwardStreamServer();
  ForwardStreamServer(const ForwardStreamServer&) = delete;
  ForwardStreamServer& operator=(const ForwardStreamServer&) = delete;

  // Starts the thread and takes streams. Until SetExecutor they end with UNAVAILABLE "loading".
  void Start(RequestForward request);

  // `executor` is borrowed until Stop; only threads of this object call it, one at a time.
  void SetExecutor(ExpertExecutor* executor);

  // New streams end with UNAVAILABLE at once, open ones after the answer under way. Idempotent;
  // does not wait.
  void Drain();

  // After Drain: true once every stream has got its last answer and its status. What remains for
  // grpc::Server::Shutdown are connections of clients that may be slow to close them.
  bool WaitUntilDrained(absl::Time deadline);

  // After grpc::Server::Shutdown: empties the queue and joins the thread. Idempotent.
  void Stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::expert
