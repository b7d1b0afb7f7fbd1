// The tokenizer and chat template of one directory, together: what the trunk and `banyan tokenize`
// share.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tokenizer/bpe_tokenizer.h"
#include "common/tokenizer/chat_template.h"

namespace banyan {

// Immutable after Load; thread-safe.
class TextCodec {
 public:
  struct RenderedChat {
    std::string text;
    std::vector<int32_t> ids;
  };

  // kNotFound when DIRECTORY has no tokenizer.json. A missing or unusable chat template is not an
  // error here: RenderChat then says why.
  static absl::StatusOr<std::unique_ptr<TextCodec>> Load(const std::string& directory);

  const BpeTokenizer& tokenizer() const { return *tokenizer_; }
  bool has_chat_template() const { return chat_template_.ok(); }

  // The raw path: special tokens in the text count.
  std::vector<int32_t> Encode(std::string_view text) const;

  // Renders `variables` (see ChatTemplate::Render) and encodes the whole: borders between the
  // template's text and users' split no token, but added tokens marked special count only in the
  // former. kInvalidArgument without a list of messages.
  absl::StatusOr<RenderedChat> RenderChat(const nlohmann::ordered_json& variables) const;

 private:
  TextCodec(std::unique_ptr<BpeTokenizer> tokenizer,
            absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template);

  std::unique_ptr<BpeTokenizer> tokenizer_;
  absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template_;
};

}  // namespace banyan
