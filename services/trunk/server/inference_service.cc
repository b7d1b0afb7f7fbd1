#include "services/trunk/server/inference_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/grpc_status.h"
#include "services/trunk/server/prompt.h"

namespace banyan::trunk {
namespace {

using inference::v1::DetokenizeRequest;
using inference::v1::DetokenizeResponse;
using inference::v1::GetModelInfoRequest;
using inference::v1::GetModelInfoResponse;
using inference::v1::TokenizeRequest;
using inference::v1::TokenizeResponse;

absl::Status CheckTokenizer(const ModelFacts& facts) {
  if (facts.codec != nullptr) return absl::OkStatus();
  return FailedPreconditionF("this checkpoint has no tokenizer files: it serves token_ids only");
}

absl::Status TokenizePrompt(const TokenizeRequest& request, const ModelFacts& facts,
                            TokenizeResponse& response) {
  RETURN_IF_ERROR(CheckTokenizer(facts));
  switch (request.prompt_case()) {
    case TokenizeRequest::kText: {
      const std::vector<int32_t> ids = facts.codec->Encode(request.text());
      response.mutable_ids()->Assign(ids.begin(), ids.end());
      return absl::OkStatus();
    }
    case TokenizeRequest::kChat: {
      ASSIGN_OR_RETURN(TextCodec::RenderedChat rendered, RenderChatPrompt(request.chat(), facts));
      response.mutable_ids()->Assign(rendered.ids.begin(), rendered.ids.end());
      response.set_rendered(std::move(rendered.text));
      return absl::OkStatus();
    }
    case TokenizeRequest::PROMPT_NOT_SET:
      break;
  }
  return InvalidArgumentF("prompt: none, expected text or chat");
}

absl::Status DetokenizeIds(const DetokenizeRequest& request, const ModelFacts& facts,
                           DetokenizeResponse& response) {
  RETURN_IF_ERROR(CheckTokenizer(facts));
  for (int i = 0; i < request.ids_size(); ++i) {
    if (request.ids(i) < 0 || request.ids(i) >= facts.vocab_size) {
      return InvalidArgumentF("ids[{}] {}: expected ids from 0 to {}", i, request.ids(i),
                              facts.vocab_size - 1);
    }
  }
  const std::vector<int32_t> ids(request.ids().begin(), request.ids().end());
  response.set_text(facts.codec->tokenizer().Decode(ids, request.skip_special_tokens()));
  return absl::OkStatus();
}

}  // namespace

InferenceService::InferenceService(const LoadTracker* tracker, LoadWatchers* watchers,
                                   PromptWorkers* workers)
    : tracker_(tracker), watchers_(watchers), workers_(workers) {}

void InferenceService::SetModel(const ServingModel* model) { model_ = model; }
void InferenceService::SetDraining() { draining_ = true; }

absl::StatusOr<const ServingModel*> InferenceService::GetModel() const {
  if (draining_) {
    return absl::UnavailableError("this server is shutting down and takes no new requests");
  }
  if (const ServingModel* const model = model_; model != nullptr) return model;
  const common::v1::LoadProgress progress = tracker_->Get();
  return StatusF(absl::StatusCode::kUnavailable, "the model is not ready: {}{}{}; retry later",
                 common::v1::LoadProgress::Phase_Name(progress.phase()),
                 progress.detail().empty() ? "" : ", ", Printable(progress.detail(), 600));
}

grpc::Status InferenceService::RunOnWorker(size_t bytes,
                                           std::function<absl::Status(const ServingModel&)> work) {
  const absl::StatusOr<const ServingModel*> model = GetModel();
  if (!model.ok()) return ToGrpc(model.status());
  absl::Status result;
  absl::Notification done;
  const bool queued = workers_->Submit(bytes, [&] {
    result = work(**model);
    done.Notify();
  });
  if (!queued) {
    return ToGrpc(StatusF(absl::StatusCode::kResourceExhausted,
                          "{} prompts wait to be tokenised; retry in a second",
                          workers_->queued()));
  }
  done.WaitForNotification();
  return ToGrpc(result);
}

grpc::Status InferenceService::Tokenize(grpc::ServerContext* /*context*/,
                                        const TokenizeRequest* request,
                                        TokenizeResponse* response) {
  return RunOnWorker(request->ByteSizeLong(), [=](const ServingModel& model) {
    return TokenizePrompt(*request, model.facts, *response);
  });
}

grpc::Status InferenceService::Detokenize(grpc::ServerContext* /*context*/,
                                          const DetokenizeRequest* request,
                                          DetokenizeResponse* response) {
  return RunOnWorker(request->ByteSizeLong(), [=](const ServingModel& model) {
    return DetokenizeIds(*request, model.facts, *response);
  });
}

grpc::Status InferenceService::GetModelInfo(grpc::ServerContext* /*context*/,
                                            const GetModelInfoRequest* /*request*/,
                                            GetModelInfoResponse* response) {
  const absl::StatusOr<const ServingModel*> model = GetModel();
  if (model.ok()) {
    *response = (*model)->info;
    (*model)->add_shards(*response);
  }
  return ToGrpc(model.status());
}

grpc::Status InferenceService::WatchLoad(grpc::ServerContext* context,
                                         const inference::v1::WatchLoadRequest* /*request*/,
                                         grpc::ServerWriter<common::v1::LoadProgress>* writer) {
  return watchers_->Serve(context, writer);
}

}  // namespace banyan::trunk
