#include "common/tokenizer/tokenizer_features.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/pre_tokenizer.h"

namespace banyan {
namespace {

using Json = nlohmann::json;

std::string Show(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 120) text = text.substr(0, 117) + "...";
  return text;
}

template <typename... Args>
absl::Status UnimplementedF(fmt::format_string<Args...> format, Args&&... args) {
  return StatusF(absl::StatusCode::kUnimplemented, format, std::forward<Args>(args)...);
}

const Json& Field(const Json& object, std::string_view key) {
  static const Json absent;
  if (!object.is_object()) return absent;
  const auto it = object.find(key);
  return it == object.end() ? absent : *it;
}

std::string TypeOf(const Json& object) {
  const Json& type = Field(object, "type");
  return type.is_string() ? type.get<std::string>() : Show(object);
}

// Absent, null, false or "": the feature is off.
absl::Status ExpectOff(const Json& object, std::string_view path, std::string_view key) {
  const Json& value = Field(object, key);
  // NOLINTNEXTLINE(readability-container-size-empty): an empty list is not "".
  if (value.is_null() || value == false || value == "") return absl::OkStatus();
  return UnimplementedF("{}.{}: {} is not supported, expected it to be off", path, key,
                        Show(value));
}

absl::Status ReadNormalizer(const Json& normalizer, TokenizerJson& out) {
  if (normalizer.is_null()) return absl::OkStatus();
  const std::string type = TypeOf(normalizer);
  if (type == "NFC") {
    out.normalize_nfc = true;
    return absl::OkStatus();
  }
  const Json& list = Field(normalizer, "normalizers");
  if (type == "Sequence" && list.is_array()) {
    for (const Json& one : list) {
      if (TypeOf(one) != "NFC") {
        return UnimplementedF("normalizer: {} is not supported, expected NFC or none", TypeOf(one));
      }
      out.normalize_nfc = true;
    }
    return absl::OkStatus();
  }
  return UnimplementedF("normalizer: {} is not supported, expected NFC or none", type);
}

absl::Status CheckPreTokenizer(const Json& pre_tokenizer) {
  constexpr std::string_view kExpected = "expected Sequence of Split and ByteLevel";
  const Json& list = Field(pre_tokenizer, "pretokenizers");
  if (TypeOf(pre_tokenizer) != "Sequence" || !list.is_array()) {
    return UnimplementedF("pre_tokenizer: {} is not supported, {}", TypeOf(pre_tokenizer),
                          kExpected);
  }
  if (list.size() != 2 || TypeOf(list[0]) != "Split" || TypeOf(list[1]) != "ByteLevel") {
    std::string found;
    for (const Json& one : list) found += (found.empty() ? "" : ", ") + TypeOf(one);
    return UnimplementedF("pre_tokenizer: Sequence of [{}] is not supported, {}", found, kExpected);
  }
  const Json& pattern = Field(Field(list[0], "pattern"), "Regex");
  if (!pattern.is_string() || pattern.get_ref<const std::string&>() != kQwenPattern) {
    return UnimplementedF(
        "pre_tokenizer.pretokenizers[0].pattern: {} is not supported, expected {}",
        Show(Field(list[0], "pattern")), kQwenPattern);
  }
  if (Field(list[0], "behavior") != "Isolated") {
    return UnimplementedF(
        "pre_tokenizer.pretokenizers[0].behavior: {} is not supported, expected "
        "\"Isolated\"",
        Show(Field(list[0], "behavior")));
  }
  RETURN_IF_ERROR(ExpectOff(list[0], "pre_tokenizer.pretokenizers[0]", "invert"));
  RETURN_IF_ERROR(ExpectOff(list[1], "pre_tokenizer.pretokenizers[1]", "add_prefix_space"));
  // Absent means true in the format's definition.
  if (Field(list[1], "use_regex") != false) {
    return UnimplementedF(
        "pre_tokenizer.pretokenizers[1].use_regex: {} is not supported, expected "
        "false",
        Show(Field(list[1], "use_regex")));
  }
  return absl::OkStatus();
}

absl::Status CheckModel(const Json& model) {
  if (!model.is_object())
    return InvalidArgumentF("model: expected an object, found {}", Show(model));
  if (Field(model, "type") != "BPE") {
    return UnimplementedF("model.type: {} is not supported, expected \"BPE\"",
                          Show(Field(model, "type")));
  }
  for (const std::string_view key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                     "byte_fallback", "ignore_merges"}) {
    RETURN_IF_ERROR(ExpectOff(model, "model", key));
  }
  constexpr std::string_view kKnown[] = {
      "type",     "dropout",       "unk_token",     "continuing_subword_prefix",
      "fuse_unk", "byte_fallback", "ignore_merges", "end_of_word_suffix",
      "vocab",    "merges"};
  for (const auto& item : model.items()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), item.key()) == std::end(kKnown)) {
      return UnimplementedF("model.{}: unknown field", item.key());
    }
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& list, TokenizerJson& out) {
  if (list.is_null()) return absl::OkStatus();
  if (!list.is_array()) return InvalidArgumentF("added_tokens: expected a list");
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& entry = list[i];
    const std::string path = fmt::format("added_tokens[{}]", i);
    const Json& id = Field(entry, "id");
    const Json& content = Field(entry, "content");
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxTokenId) {
      return InvalidArgumentF("{}.id: expected a number in [0, {}), found {}", path, kMaxTokenId,
                              Show(id));
    }
    if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
      return InvalidArgumentF("{}.content: expected a string that is not empty, found {}", path,
                              Show(content));
    }
    for (const std::string_view key : {"lstrip", "rstrip", "single_word", "normalized"}) {
      RETURN_IF_ERROR(ExpectOff(
          entry, fmt::format("{} ({})", path, content.get_ref<const std::string&>()), key));
    }
    const Json& special = Field(entry, "special");
    if (!special.is_null() && !special.is_boolean()) {
      return InvalidArgumentF("{}.special: expected true or false, found {}", path, Show(special));
    }
    out.added_tokens.push_back({id.get<int32_t>(), content.get<std::string>(),
                                special.is_boolean() && special.get<bool>()});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTokenizerFeatures(const nlohmann::json& root, TokenizerJson& out) {
  if (!root.is_object()) return InvalidArgumentF("expected an object at the top");
  RETURN_IF_ERROR(CheckModel(Field(root, "model")));
  RETURN_IF_ERROR(ReadNormalizer(Field(root, "normalizer"), out));
  RETURN_IF_ERROR(CheckPreTokenizer(Field(root, "pre_tokenizer")));
  const Json& post_processor = Field(root, "post_processor");
  if (!post_processor.is_null() && TypeOf(post_processor) != "ByteLevel") {
    return UnimplementedF("post_processor: {} is not supported, expected ByteLevel or none",
                          TypeOf(post_processor));
  }
  if (TypeOf(Field(root, "decoder")) != "ByteLevel") {
    return UnimplementedF("decoder: {} is not supported, expected ByteLevel",
                          TypeOf(Field(root, "decoder")));
  }
  RETURN_IF_ERROR(ExpectOff(root, "tokenizer", "truncation"));
  const Json& padding = Field(root, "padding");
  // Padding to the longest of a batch leaves single texts alone.
  if (!padding.is_null() && Field(padding, "strategy") != "BatchLongest") {
    return UnimplementedF("padding: {} is not supported, expected none", Show(padding));
  }
  return ReadAddedTokens(Field(root, "added_tokens"), out);
}

}  // namespace banyan
