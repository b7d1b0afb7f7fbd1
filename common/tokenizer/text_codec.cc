#include "common/tokenizer/text_codec.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {

TextCodec::TextCodec(std::unique_ptr<BpeTokenizer> tokenizer,
                     absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template)
    : tokenizer_(std::move(tokenizer)), chat_template_(std::move(chat_template)) {}

absl::StatusOr<std::unique_ptr<TextCodec>> TextCodec::Load(const std::string& directory) {
  ASSIGN_OR_RETURN(auto tokenizer, BpeTokenizer::Load(directory));
  return std::unique_ptr<TextCodec>(
      new TextCodec(std::move(tokenizer), ChatTemplate::Load(directory)));
}

std::vector<int32_t> TextCodec::Encode(std::string_view text) const {
  std::vector<int32_t> ids;
  tokenizer_->Encode(text, AddedTokens::kAll, ids);
  return ids;
}

absl::StatusOr<TextCodec::RenderedChat> TextCodec::RenderChat(
    const nlohmann::ordered_json& variables) const {
  if (!chat_template_.ok()) return chat_template_.status();
  if (!variables.is_object() || !variables.contains("messages") ||
      !variables["messages"].is_array()) {
    return InvalidArgumentF("messages: expected a list");
  }
  ASSIGN_OR_RETURN(const auto spans, (*chat_template_)->Render(variables));
  RenderedChat chat;
  std::vector<TextSpan> parts;
  for (const RenderedSpan& span : spans) {
    chat.text += span.text;
    parts.push_back({span.text, span.user_text ? AddedTokens::kOrdinary : AddedTokens::kAll});
  }
  tokenizer_->EncodeSpans(parts, chat.ids);
  return chat;
}

}  // namespace banyan
