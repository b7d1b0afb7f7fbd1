#include "common/tokenizer/chat_template.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/file_text.h"
#include "common/tokenizer/jinja_eval.h"
#include "common/tokenizer/jinja_parser.h"
#include "common/tokenizer/utf8.h"

namespace banyan {
namespace {

using jinja::Value;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

JinjaText UserText(const std::string& text) {
  std::string valid;
  AppendSanitized(text, /*keep_incomplete=*/false, valid);
  return JinjaText(std::move(valid), /*user_text=*/true);
}

absl::StatusOr<Value> FromJson(const Json& json, int32_t depth) {
  if (depth > jinja::kMaxValueDepth) {
    return InvalidArgumentF("variables nest deeper than {} levels", jinja::kMaxValueDepth);
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::Bool(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::Integer(json.get<int64_t>());
    case Json::value_t::number_unsigned:
      return Value::Integer(json.get<uint64_t>());
    case Json::value_t::number_float:
      return Value::Float(json.get<double>());
    case Json::value_t::string:
      return Value::Text(UserText(json.get_ref<const std::string&>()));
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
        items.push_back(std::move(value));
      }
      return Value::Of(std::make_shared<const jinja::List>(std::move(items)));
    }
    case Json::value_t::object: {
      std::vector<std::pair<JinjaText, Value>> entries;
      entries.reserve(json.size());
      for (const auto& item : json.items()) {
        ASSIGN_OR_RETURN(Value value, FromJson(item.value(), depth + 1));
        entries.emplace_back(UserText(item.key()), std::move(value));
      }
      return Value::Of(std::make_shared<const jinja::Dict>(std::move(entries)));
    }
    default:
      return Value(jinja::None{});
  }
}

class ChatTemplateImpl final : public ChatTemplate {
 public:
  ChatTemplateImpl(jinja::Block block, std::string name, Constants constants)
      : block_(std::move(block)), name_(std::move(name)), constants_(std::move(constants)) {}

  absl::StatusOr<std::vector<RenderedSpan>> Render(
      const nlohmann::ordered_json& variables) const override {
    if (!variables.is_object()) {
      return InvalidArgumentF("{}: variables must be an object", name_);
    }
    // Of equal keys the last one counts. Hugging Face passes the first three always; templates may
    // ask for them without `is defined`.
    std::vector<std::pair<JinjaText, Value>> entries;
    const auto constant = [&](std::string_view key, Value value) {
      entries.emplace_back(JinjaText(std::string(key), false), std::move(value));
    };
    constant("tools", jinja::None{});
    constant("documents", jinja::None{});
    constant("add_generation_prompt", Value::Bool(false));
    for (const auto& [key, text] : constants_) {
      constant(key, Value::Text(text, /*user_text=*/false));
    }
    for (const auto& item : variables.items()) {
      auto value = FromJson(item.value(), 1);
      if (!value.ok()) return Annotate(value.status(), name_);
      entries.emplace_back(UserText(item.key()), *std::move(value));
    }
    const jinja::Dict globals(std::move(entries));
    const auto text = jinja::Evaluator(block_, globals).Run();
    if (!text.ok()) return Annotate(text.status(), name_);
    std::vector<RenderedSpan> spans;
    size_t begin = 0;
    for (const JinjaText::Run& run : text->runs()) {
      spans.push_back({text->bytes().substr(begin, run.end - begin), run.user_text});
      begin = run.end;
    }
    return spans;
  }

 private:
  const jinja::Block block_;
  const std::string name_;
  const Constants constants_;
};

// "eos_token": "..." or {"content": "..."}.
ChatTemplate::Constants SpecialTokens(const Json& config) {
  ChatTemplate::Constants constants;
  for (const std::string key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    const auto it = config.find(key);
    if (it == config.end()) continue;
    if (it->is_string()) constants.emplace_back(key, it->get<std::string>());
    if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) {
      constants.emplace_back(key, (*it)["content"].get<std::string>());
    }
  }
  return constants;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(std::string_view source,
                                                                   std::string_view source_name,
                                                                   Constants constants) {
  if (source.size() > kMaxTemplateBytes) {
    return InvalidArgumentF("{}: {} bytes, expected at most {}", source_name, source.size(),
                            kMaxTemplateBytes);
  }
  if (!IsValidUtf8(source)) return InvalidArgumentF("{}: not valid UTF-8", source_name);
  auto block = jinja::Parse(source);
  if (!block.ok()) return Annotate(block.status(), source_name);
  return std::make_unique<ChatTemplateImpl>(*std::move(block), std::string(source_name),
                                            std::move(constants));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& directory) {
  const std::string config_path = directory + "/tokenizer_config.json";
  const auto config_text = ReadFileText(config_path);
  Json config = Json::object();
  if (config_text.ok()) {
    config = Json::parse(*config_text, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) return InvalidArgumentF("{}: expected a JSON object", config_path);
  } else if (!absl::IsNotFound(config_text.status())) {
    return config_text.status();
  }
  const std::string path = directory + "/chat_template.jinja";
  auto source = ReadFileText(path);
  if (source.ok()) return Create(*source, path, SpecialTokens(config));
  if (!absl::IsNotFound(source.status())) return source.status();
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) {
    return StatusF(absl::StatusCode::kNotFound,
                   "{}: no chat_template.jinja and no chat_template in tokenizer_config.json",
                   directory);
  }
  if (!it->is_string()) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{}: chat_template is not a string (several named templates are not supported)",
                   config_path);
  }
  return Create(it->get_ref<const std::string&>(), config_path + " chat_template",
                SpecialTokens(config));
}

}  // namespace banyan
