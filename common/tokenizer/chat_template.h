// Renders a checkpoint's own chat template: an interpreter for the part of Jinja that Qwen
// templates use.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan {

// A piece of rendered text. Text that stems from message content (or tools, or arguments) is user
// text: special tokens typed there are not control tokens. The template's own text is trusted.
struct RenderedSpan {
  std::string text;
  bool user_text = false;
};

// Immutable after Create; thread-safe.
class ChatTemplate {
 public:
  // Texts the template may read by name, besides the variables of Render, and which are trusted as
  // the template is: bos_token, eos_token, ...
  using Constants = std::vector<std::pair<std::string, std::string>>;

  // kUnimplemented names an unsupported construct with its line; kInvalidArgument a syntax error.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(std::string_view source,
                                                              std::string_view source_name,
                                                              Constants constants = {});
  // DIRECTORY/chat_template.jinja, else "chat_template" of tokenizer_config.json; kNotFound when
  // neither. The constants are the *_token entries of tokenizer_config.json.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& directory);

  virtual ~ChatTemplate() = default;

  // `variables` is an object with "messages" and whatever else the template reads; "tools",
  // "documents" and "add_generation_prompt" are none, none and false where absent, as Hugging Face
  // has it. Never copied, so its depth costs nothing before it is checked (at most 100 levels).
  // kInvalidArgument: what the template raised, or an operation on a value of the wrong type, with
  // the line; kResourceExhausted: more than 16 MiB of output, 10^7 steps or too deep a recursion.
  // Neighbouring spans differ in user_text; invalid UTF-8 in variables becomes U+FFFD.
  virtual absl::StatusOr<std::vector<RenderedSpan>> Render(
      const nlohmann::ordered_json& variables) const = 0;
};

}  // namespace banyan
