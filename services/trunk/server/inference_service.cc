#include "services/trunk/server/inference_service.h"

#include <string>
#include <utility>
#include <vector>

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

grpc::ServerUnaryReactor* InferenceService::RunOnWorker(
    grpc::CallbackServerContext* context, size_t bytes,
    std::function<absl::Status(const ServingModel&)> work) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::StatusOr<const ServingModel*> model = GetModel();
  if (!model.ok()) {
    reactor->Finish(ToGrpc(model.status()));
    return reactor;
  }
  const bool queued = workers_->Submit(bytes, [reactor, model = *model, work = std::move(work)] {
    reactor->Finish(ToGrpc(work(*model)));
  });
  if (!queued) {
    reactor->Finish(
        ToGrpc(StatusF(absl::StatusCode::kResourceExhausted,
                       "{} prompts wait to be tokenised; retry in a second", workers_->queued())));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const TokenizeRequest* request,
                                                     TokenizeResponse* response) {
  return RunOnWorker(context, request->ByteSizeLong(), [=](const ServingModel& model) {
    return TokenizePrompt(*request, model.facts, *response);
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const DetokenizeRequest* request,
                                                       DetokenizeResponse* response) {
  return RunOnWorker(context, request->ByteSizeLong(), [=](const ServingModel& model) {
    return DetokenizeIds(*request, model.facts, *response);
  });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const GetModelInfoRequest* /*request*/,
                                                         GetModelInfoResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::StatusOr<const ServingModel*> model = GetModel();
  if (model.ok()) {
    *response = (*model)->info;
    (*model)->add_shards(*response);
  }
  reactor->Finish(ToGrpc(model.status()));
  return reactor;
}

grpc::ServerWriteReactor<common::v1::LoadProgress>* InferenceService::WatchLoad(
    grpc::CallbackServerContext* /*context*/, const inference::v1::WatchLoadRequest* /*request*/) {
  return watchers_->NewStream();
}

}  // namespace banyan::trunk
