#include "services/trunk/server/prompt.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/untrusted_json.h"

namespace banyan::trunk {
namespace {

using inference::v1::ChatMessage;
using inference::v1::ChatPrompt;
using inference::v1::GenerateRequest;
using nlohmann::ordered_json;

absl::StatusOr<ordered_json> ParseField(const std::string& field, std::string_view text,
                                        ordered_json::value_t type) {
  const std::string_view expected =
      type == ordered_json::value_t::array ? "a JSON array" : "a JSON object";
  absl::StatusOr<ordered_json> parsed = ParseUntrustedJson(text);
  if (!parsed.ok()) {
    return InvalidArgumentF("{}: {}, expected {}", field, ToStd(parsed.status().message()),
                            expected);
  }
  ordered_json& value = *parsed;
  if (value.type() != type) {
    return InvalidArgumentF("{}: a JSON {}, expected {}", field, value.type_name(), expected);
  }
  return value;
}

absl::StatusOr<ordered_json> MessageVariables(const ChatMessage& message, int index) {
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  const std::string place = fmt::format("chat.messages[{}]", index);
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role()) == std::end(kRoles)) {
    return InvalidArgumentF("{}.role \"{}\": expected system, user, assistant or tool", place,
                            Printable(message.role(), 80));
  }
  ordered_json out = {{"role", message.role()}, {"content", message.content()}};
  if (!message.reasoning_content().empty()) {
    out["reasoning_content"] = message.reasoning_content();
  }
  if (!message.tool_calls_json().empty()) {
    ASSIGN_OR_RETURN(out["tool_calls"],
                     ParseField(place + ".tool_calls_json", message.tool_calls_json(),
                                ordered_json::value_t::array));
  }
  if (!message.tool_call_id().empty()) out["tool_call_id"] = message.tool_call_id();
  return out;
}

absl::Status NoTokenizer(std::string_view field) {
  return FailedPreconditionF(
      "{}: this checkpoint has no tokenizer files; send token_ids, or serve a directory that has "
      "tokenizer.json",
      field);
}

absl::Status CheckIds(const inference::v1::TokenIds& prompt, int32_t vocab_size) {
  for (int i = 0; i < prompt.ids_size(); ++i) {
    if (prompt.ids(i) < 0 || prompt.ids(i) >= vocab_size) {
      return InvalidArgumentF("token_ids.ids[{}] {}: expected ids from 0 to {}", i, prompt.ids(i),
                              vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ordered_json> ChatVariables(const ChatPrompt& chat) {
  if (chat.messages().empty()) {
    return InvalidArgumentF("chat.messages: empty, expected at least one message");
  }
  ordered_json messages = ordered_json::array();
  for (int i = 0; i < chat.messages_size(); ++i) {
    ASSIGN_OR_RETURN(ordered_json message, MessageVariables(chat.messages(i), i));
    messages.push_back(std::move(message));
  }
  ordered_json variables = {{"messages", std::move(messages)}};
  if (!chat.tools_json().empty()) {
    ASSIGN_OR_RETURN(variables["tools"], ParseField("chat.tools_json", chat.tools_json(),
                                                    ordered_json::value_t::array));
  }
  variables["add_generation_prompt"] = !chat.no_generation_prompt();
  if (!chat.template_args_json().empty()) {
    ASSIGN_OR_RETURN(ordered_json arguments,
                     ParseField("chat.template_args_json", chat.template_args_json(),
                                ordered_json::value_t::object));
    for (auto& [key, value] : arguments.items()) {
      if (key == "messages" || key == "tools" || key == "add_generation_prompt") {
        return InvalidArgumentF(
            "chat.template_args_json: key \"{}\" has a field of its own in ChatPrompt", key);
      }
      variables[key] = std::move(value);
    }
  }
  return variables;
}

absl::StatusOr<TextCodec::RenderedChat> RenderChatPrompt(const ChatPrompt& chat,
                                                         const ModelFacts& facts) {
  if (facts.codec == nullptr) return NoTokenizer("chat");
  ASSIGN_OR_RETURN(const ordered_json variables, ChatVariables(chat));
  absl::StatusOr<TextCodec::RenderedChat> rendered = facts.codec->RenderChat(variables);
  if (rendered.ok()) return rendered;
  if (facts.codec->has_chat_template()) return Annotate(rendered.status(), "chat");
  return FailedPreconditionF("chat: {}; send text or token_ids",
                             ToStd(rendered.status().message()));
}

absl::StatusOr<std::vector<int32_t>> PromptIds(const GenerateRequest& request,
                                               const ModelFacts& facts) {
  std::vector<int32_t> ids;
  switch (request.prompt_case()) {
    case GenerateRequest::kText: {
      if (facts.codec == nullptr) return NoTokenizer("text");
      if (request.text().empty()) {
        return InvalidArgumentF("text: empty, expected at least one character");
      }
      ids = facts.codec->Encode(request.text());
      break;
    }
    case GenerateRequest::kTokenIds: {
      RETURN_IF_ERROR(CheckIds(request.token_ids(), facts.vocab_size));
      ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    }
    case GenerateRequest::kChat: {
      ASSIGN_OR_RETURN(TextCodec::RenderedChat rendered, RenderChatPrompt(request.chat(), facts));
      ids = std::move(rendered.ids);
      break;
    }
    case GenerateRequest::PROMPT_NOT_SET:
      return InvalidArgumentF("prompt: none, expected text, token_ids or chat");
  }
  if (ids.empty()) return InvalidArgumentF("prompt: no tokens, expected at least one");
  // A tokenizer may know ids that the model has no embedding for.
  for (const int32_t id : ids) {
    if (id >= facts.vocab_size) {
      return FailedPreconditionF(
          "prompt: the tokenizer gives id {}, but the model's vocabulary ends at {}", id,
          facts.vocab_size - 1);
    }
  }
  if (ids.size() > static_cast<size_t>(facts.max_context_tokens)) {
    return InvalidArgumentF("prompt: {} tokens, but the context holds {}", ids.size(),
                            facts.max_context_tokens);
  }
  return ids;
}

size_t PromptBytes(const ChatPrompt& chat) { return chat.ByteSizeLong(); }

size_t PromptBytes(const GenerateRequest& request) {
  switch (request.prompt_case()) {
    case GenerateRequest::kText:
      return request.text().size();
    case GenerateRequest::kTokenIds:
      return static_cast<size_t>(request.token_ids().ids_size());
    case GenerateRequest::kChat:
      return PromptBytes(request.chat());
    case GenerateRequest::PROMPT_NOT_SET:
      return 0;
  }
  return 0;
}

}  // namespace banyan::trunk
