// Generate calls on a completion queue with a thread of its own: why not the callback API is in
// docs/adr/no-callback-services.md.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/inference/v1/inference.pb.h"
#include "services/trunk/server/prompt_workers.h"
#include "services/trunk/server/request_metrics.h"
#include "services/trunk/server/serving_model.h"

namespace banyan::trunk {

// Accepts calls at once, refuses the surplus at once, streams answers as clients read them. One
// message per step, or the tokens of several steps in one while the client is behind.
class GenerateCalls {
 public:
  struct Options {
    // A call whose message (or end) gRPC could not pass on for so long is ended.
    absl::Duration slow_client_timeout = absl::Seconds(30);
    // Calls at work at the same time, in the engine or on the way there; more are refused.
    int max_calls = 128;
  };
  using Writer = grpc::ServerAsyncWriter<inference::v1::GenerateResponse>;
  // The generated service's RequestGenerate.
  using Accept = std::function<void(grpc::ServerContext*, inference::v1::GenerateRequest*, Writer*,
                                    grpc::ServerCompletionQueue*, void* tag)>;
  // The loaded model, or why there is none.
  using GetModel = std::function<absl::StatusOr<const ServingModel*>()>;

  // `workers` and `metrics` are borrowed.
  GenerateCalls(const Options& options, std::unique_ptr<grpc::ServerCompletionQueue> queue,
                PromptWorkers* workers, RequestMetrics* metrics, GetModel get_model);
  ~GenerateCalls();
  GenerateCalls(const GenerateCalls&) = delete;
  GenerateCalls& operator=(const GenerateCalls&) = delete;

  // Once, after the gRPC server has started.
  void Start(Accept accept);
  // After the gRPC server's Shutdown has begun, before the engine goes; ends when every call has.
  void Stop();

 private:
  struct Call;
  enum class Operation : uint8_t { kAccept, kDone, kWrite, kWake };
  struct Tag {
    Call* call;
    Operation operation;
  };
  // What other threads tell the queue's thread.
  struct Note {
    std::shared_ptr<Call> call;
    std::function<void(Call&)> action;
  };

  void Run();
  void PostAccept();
  void OnAccepted(Call& call);
  void OnDone(Call& call);
  void Prepare(const std::shared_ptr<Call>& call, const ServingModel* model);
  void Advance(Call& call);
  void End(Call& call, const absl::Status& status);
  void Record(Call& call, std::string_view outcome, const absl::Status& status);
  void CancelEngine(Call& call);
  void EraseIfOver(Call& call);
  void EndSlowClients(absl::Time now);
  void Post(Note note) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<Note> TakeNotes() ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  PromptWorkers* const workers_;
  RequestMetrics* const metrics_;
  const GetModel get_model_;
  Accept accept_;

  // Of the queue's thread.
  std::unordered_map<const Call*, std::shared_ptr<Call>> calls_;
  int num_working_ = 0;
  int64_t num_refused_ = 0;  // since the last line about it
  absl::Time next_sweep_;
  bool stopping_ = false;

  absl::Mutex mutex_;
  std::vector<Note> notes_ ABSL_GUARDED_BY(mutex_);
  bool wake_pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mutex_);
  Tag wake_tag_ = {nullptr, Operation::kWake};

  std::thread thread_;
};

}  // namespace banyan::trunk
