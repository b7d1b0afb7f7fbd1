// banyan.inference.v1.Inference as RPCs: check, submit, reply; no mathematics. Generate runs on a
// completion queue (generate_calls.h), the rest on gRPC's callback API.
#pragma once

#include <atomic>
#include <functional>

#include "common/rpc/load_tracker.h"
#include "common/rpc/load_watchers.h"
#include "proto/inference/v1/inference.grpc.pb.h"
#include "services/trunk/server/prompt_workers.h"
#include "services/trunk/server/serving_model.h"

namespace banyan::trunk {

using InferenceRpcs = inference::v1::Inference::WithAsyncMethod_Generate<
    inference::v1::Inference::WithCallbackMethod_Tokenize<
        inference::v1::Inference::WithCallbackMethod_Detokenize<
            inference::v1::Inference::WithCallbackMethod_GetModelInfo<
                inference::v1::Inference::WithCallbackMethod_WatchLoad<
                    inference::v1::Inference::Service>>>>>;

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

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const inference::v1::TokenizeRequest* request,
                                     inference::v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const inference::v1::DetokenizeRequest* request,
                                       inference::v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const inference::v1::GetModelInfoRequest* request,
                                         inference::v1::GetModelInfoResponse* response) override;
  grpc::ServerWriteReactor<common::v1::LoadProgress>* WatchLoad(
      grpc::CallbackServerContext* context,
      const inference::v1::WatchLoadRequest* request) override;

 private:
  grpc::ServerUnaryReactor* RunOnWorker(grpc::CallbackServerContext* context, size_t bytes,
                                        std::function<absl::Status(const ServingModel&)> work);

  const LoadTracker* const tracker_;
  LoadWatchers* const watchers_;
  PromptWorkers* const workers_;
  std::atomic<const ServingModel*> model_{nullptr};
  std::atomic<bool> draining_{false};
};

}  // namespace banyan::trunk
