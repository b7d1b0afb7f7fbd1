// banyan.inference.v1.Inference as RPCs: check, submit, reply; no mathematics. Generate runs on a
// completion queue (generate_calls.h), the rest is synchronous (common/rpc/server_threads.h).
#pragma once

#include <atomic>
#include <functional>

#include "common/rpc/load_tracker.h"
#include "common/rpc/load_watchers.h"
#include "proto/inference/v1/inference.grpc.pb.h"
#include "services/trunk/server/prompt_workers.h"
#include "services/trunk/server/serving_model.h"

namespace banyan::trunk {

using InferenceRpcs =
    inference::v1::Inference::WithAsyncMethod_Generate<inference::v1::Inference::Service>;

// Thread-safe. Outlives the gRPC server it is registered with.
class InferenceService final : public InferenceRpcs {
 public:
  // All borrowed.
  InferenceService(const LoadTracker* tracker, LoadWatchers* watchers, PromptWorkers* workers);

  // From now on requests are answered. `model` is borrowed until the server has gone.
  void SetModel(const ServingModel* model);
  // From now on they are refused.
  void SetDraining();

  // kUnavailable: still loading (phase and what it waits for), or draining.
  absl::StatusOr<const ServingModel*> GetModel() const;

  grpc::Status Tokenize(grpc::ServerContext* context, const inference::v1::TokenizeRequest* request,
                        inference::v1::TokenizeResponse* response) override;
  grpc::Status Detokenize(grpc::ServerContext* context,
                          const inference::v1::DetokenizeRequest* request,
                          inference::v1::DetokenizeResponse* response) override;
  grpc::Status GetModelInfo(grpc::ServerContext* context,
                            const inference::v1::GetModelInfoRequest* request,
                            inference::v1::GetModelInfoResponse* response) override;
  grpc::Status WatchLoad(grpc::ServerContext* context,
                         const inference::v1::WatchLoadRequest* request,
                         grpc::ServerWriter<common::v1::LoadProgress>* writer) override;

 private:
  // Runs `work` on a prompt worker and waits for it.
  grpc::Status RunOnWorker(size_t bytes, std::function<absl::Status(const ServingModel&)> work);

  const LoadTracker* const tracker_;
  LoadWatchers* const watchers_;
  PromptWorkers* const workers_;
  std::atomic<const ServingModel*> model_{nullptr};
  std::atomic<bool> draining_{false};
};

}  // namespace banyan::trunk
