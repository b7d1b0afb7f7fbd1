// `banyan tokenize`: text to ids and back, chats through their template; offline, from a directory
// with tokenizer files.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/text_codec.h"
#include "services/client/commands/command.h"

namespace banyan::client {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::string tokenizer;
  std::string text;
  bool json_lines = false;
};

absl::StatusOr<ordered_json> Decode(const TextCodec& codec, const ordered_json& line) {
  if (!line["ids"].is_array()) return InvalidArgumentF("\"ids\": expected a list of token ids");
  std::vector<int32_t> ids;
  for (const ordered_json& id : line["ids"]) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return InvalidArgumentF("\"ids\": {} is no token id", Printable(id.dump(), 40));
    }
    ids.push_back(id.get<int32_t>());
  }
  const bool skip_special = line.value("skip_special_tokens", ordered_json(false)) == true;
  return ordered_json{{"text", codec.tokenizer().Decode(ids, skip_special)}};
}

absl::StatusOr<ordered_json> Render(const TextCodec& codec, const ordered_json& line) {
  ordered_json variables = ordered_json::object();
  if (line.contains("template_args") && !line["template_args"].is_null()) {
    if (!line["template_args"].is_object()) {
      return InvalidArgumentF("\"template_args\": expected an object");
    }
    variables = line["template_args"];
  }
  variables["messages"] = line["messages"];
  if (line.contains("tools")) variables["tools"] = line["tools"];
  variables["add_generation_prompt"] = line.value("add_generation_prompt", ordered_json(false));
  ASSIGN_OR_RETURN(TextCodec::RenderedChat chat, codec.RenderChat(variables));
  return ordered_json{{"rendered", std::move(chat.text)}, {"ids", std::move(chat.ids)}};
}

absl::StatusOr<ordered_json> Convert(const TextCodec& codec, const std::string& text) {
  const ordered_json line = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return InvalidArgumentF("expected a JSON object");
  if (line.contains("text")) {
    if (!line["text"].is_string()) return InvalidArgumentF("\"text\": expected a string");
    return ordered_json{{"ids", codec.Encode(line["text"].get_ref<const std::string&>())}};
  }
  if (line.contains("messages")) return Render(codec, line);
  if (line.contains("ids")) return Decode(codec, line);
  return InvalidArgumentF("expected \"text\", \"messages\" or \"ids\"");
}

int Run(const Options& options) {
  auto codec = TextCodec::Load(options.tokenizer);
  if (!codec.ok()) return Fail(codec.status());
  std::ios::sync_with_stdio(false);
  if (!options.json_lines) {
    std::string text = options.text;
    if (text.empty()) text.assign(std::istreambuf_iterator<char>(std::cin), {});
    std::cout << ordered_json((*codec)->Encode(text)).dump() << "\n";
  }
  std::string line;
  for (int64_t number = 1; options.json_lines && std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const absl::StatusOr<ordered_json> result = Convert(**codec, line);
    if (!result.ok()) {
      std::cout.flush();
      return Fail(Annotate(result.status(), fmt::format("line {}", number)));
    }
    std::cout << result->dump(-1, ' ', false, ordered_json::error_handler_t::replace) << "\n";
    if (std::cin.rdbuf()->in_avail() <= 0) std::cout.flush();  // a program may wait for the answer
  }
  std::cout.flush();
  if (!std::cout) {
    return Fail(StatusF(absl::StatusCode::kUnknown, "cannot write the result to stdout"));
  }
  return kExitOk;
}

}  // namespace

void AddTokenize(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("tokenize", "Text to token ids and back, without a server");
  verb->add_option("--tokenizer", options->tokenizer, "Directory with tokenizer.json")->required();
  auto* text = verb->add_option("text", options->text, "The text; stdin when absent");
  verb->add_flag("--json_lines", options->json_lines,
                 "Each line of stdin: {\"text\": ...}, {\"messages\": [...], \"tools\": [...], "
                 "\"template_args\": {...}, \"add_generation_prompt\": true} or {\"ids\": [...]}")
      ->excludes(text);
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
