// The prompt of a request as token ids.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tokenizer/text_codec.h"
#include "proto/inference/v1/inference.pb.h"
#include "services/trunk/server/model_facts.h"

namespace banyan::trunk {

// Variables of the chat template: "messages" (each with role, content, and where set
// reasoning_content, tool_calls, tool_call_id), "tools" where given, "add_generation_prompt", and
// the keys of template_args_json. kInvalidArgument names the field: no messages, an unknown role,
// text that is not JSON of the right type or passes the limits of
// common/tokenizer/untrusted_json.h, an argument that would replace one of the first three.
absl::StatusOr<nlohmann::ordered_json> ChatVariables(const inference::v1::ChatPrompt& chat);

// kFailedPrecondition: the checkpoint has no tokenizer, or no usable chat template.
absl::StatusOr<TextCodec::RenderedChat> RenderChatPrompt(const inference::v1::ChatPrompt& chat,
                                                         const ModelFacts& facts);

// Renders and tokenises; may take 100 ms and more for a prompt of megabytes. kInvalidArgument: no
// prompt, an empty one, ids outside the vocabulary, more tokens than the context holds;
// kFailedPrecondition as above.
absl::StatusOr<std::vector<int32_t>> PromptIds(const inference::v1::GenerateRequest& request,
                                               const ModelFacts& facts);

// Bytes that rendering and tokenising have to read.
size_t PromptBytes(const inference::v1::ChatPrompt& chat);
size_t PromptBytes(const inference::v1::GenerateRequest& request);

}  // namespace banyan::trunk
