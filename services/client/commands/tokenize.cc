#include "services/client/commands/tokenize.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/text_codec.h"
#include "common/tokenizer/untrusted_json.h"
#include "common/tokenizer/utf8.h"
#include "services/client/commands/command.h"

namespace banyan::client {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::Status CheckKeys(const Json& request, std::initializer_list<std::string_view> known) {
  for (const auto& item : request.items()) {
    bool found = false;
    for (const std::string_view key : known) found = found || item.key() == key;
    if (!found) return InvalidArgumentF("unknown field \"{}\"", Printable(item.key(), 40));
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> DecodeIds(const TextCodec& codec, const Json& request) {
  const Json& ids = request["ids"];
  if (!ids.is_array()) return InvalidArgumentF("ids: expected a list");
  std::vector<int32_t> values;
  values.reserve(ids.size());
  const int32_t vocab_size = codec.tokenizer().vocab_size();
  for (const Json& id : ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      return InvalidArgumentF("ids[{}]: expected an id in [0, {}), found {}", values.size(),
                              vocab_size, Printable(Dump(id), 40));
    }
    values.push_back(id.get<int32_t>());
  }
  bool skip_special = false;
  if (request.contains("skip_special_tokens")) {
    if (!request["skip_special_tokens"].is_boolean()) {
      return InvalidArgumentF("skip_special_tokens: expected true or false");
    }
    skip_special = request["skip_special_tokens"].get<bool>();
  }
  return Json{{"text", codec.tokenizer().Decode(values, skip_special)}};
}

absl::StatusOr<Json> RenderMessages(const TextCodec& codec, Json request) {
  // Everything is moved, not copied, into the variables of the template.
  Json variables = Json::object();
  if (request.contains("template_args")) {
    Json& args = request["template_args"];
    if (!args.is_object()) return InvalidArgumentF("template_args: expected an object");
    for (auto& item : args.items()) {
      for (const std::string_view key : {"messages", "tools", "add_generation_prompt"}) {
        if (item.key() == key) {
          return InvalidArgumentF("template_args: \"{}\" is a field of its own", key);
        }
      }
      variables[item.key()] = std::move(item.value());
    }
  }
  for (const char* key : {"messages", "tools"}) {
    if (!request.contains(key)) continue;
    if (!request[key].is_array() && !(request[key].is_null() && key[0] == 't')) {
      return InvalidArgumentF("{}: expected a list", key);
    }
    variables[key] = std::move(request[key]);
  }
  if (request.contains("add_generation_prompt")) {
    if (!request["add_generation_prompt"].is_boolean()) {
      return InvalidArgumentF("add_generation_prompt: expected true or false");
    }
    variables["add_generation_prompt"] = request["add_generation_prompt"];
  }
  ASSIGN_OR_RETURN(const TextCodec::RenderedChat chat, codec.RenderChat(variables));
  return Json{{"rendered", chat.text}, {"ids", chat.ids}};
}

absl::StatusOr<Json> Reply(const TextCodec& codec, std::string_view line) {
  std::string valid;
  AppendSanitized(line, /*keep_incomplete=*/false, valid);
  ASSIGN_OR_RETURN(Json request, ParseUntrustedJson(valid));
  if (!request.is_object()) return InvalidArgumentF("expected a JSON object");
  if (request.contains("messages")) {
    RETURN_IF_ERROR(
        CheckKeys(request, {"messages", "tools", "template_args", "add_generation_prompt"}));
    return RenderMessages(codec, std::move(request));
  }
  if (request.contains("text")) {
    RETURN_IF_ERROR(CheckKeys(request, {"text"}));
    if (!request["text"].is_string()) return InvalidArgumentF("text: expected a string");
    return Json{{"ids", codec.Encode(request["text"].get_ref<const std::string&>())}};
  }
  if (request.contains("ids")) {
    RETURN_IF_ERROR(CheckKeys(request, {"ids", "skip_special_tokens"}));
    return DecodeIds(codec, request);
  }
  return InvalidArgumentF("expected one of \"text\", \"messages\", \"ids\"");
}

int RunJsonLines(const TextCodec& codec, std::istream& in, std::ostream& out) {
  int exit_code = 0;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const auto reply = Reply(codec, line);
    if (reply.ok()) {
      out << Dump(*reply);
    } else {
      out << Dump(
          Json{{"error", fmt::format("line {}: {}", number, ToStd(reply.status().message()))}});
      exit_code = 1;
    }
    // Each reply is there before the next line is read: a script can talk to us.
    out << std::endl;
  }
  return exit_code;
}

int RunText(const TextCodec& codec, const TokenizeOptions& options, std::istream& in,
            std::ostream& out) {
  std::string text;
  if (options.text.has_value()) {
    text = *options.text;
  } else {
    text.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  const std::vector<int32_t> ids = codec.Encode(text);
  if (options.output == "json") {
    out << Dump(Json{{"ids", ids}});
  } else {
    out << fmt::format("{}", fmt::join(ids, " "));
  }
  out << std::endl;
  return 0;
}

}  // namespace

int RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out,
                std::ostream& err) {
  if (options.output != "text" && options.output != "json") {
    err << fmt::format("banyan: error: --output {}: expected text or json\n", options.output);
    return kExitUsage;
  }
  if (options.json_lines && options.text.has_value()) {
    err << "banyan: error: --json_lines reads its input from stdin, expected no TEXT argument\n";
    return kExitUsage;
  }
  const auto codec = TextCodec::Load(options.tokenizer);
  if (!codec.ok()) {
    err << fmt::format("banyan: error: {}\n", ToStd(codec.status().message()));
    return kExitFailed;
  }
  const int exit_code =
      options.json_lines ? RunJsonLines(**codec, in, out) : RunText(**codec, options, in, out);
  if (!out) {
    err << "banyan: error: cannot write the output\n";
    return kExitFailed;
  }
  return exit_code;
}

void AddTokenize(CLI::App& app, Action& action) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* verb = app.add_subcommand(
      "tokenize", "Turn text or conversations into token ids and back, without a server");
  verb->add_option("--tokenizer", options->tokenizer, "Directory with tokenizer.json")
      ->required()
      ->type_name("DIR");
  verb->add_flag("--json_lines", options->json_lines,
                 "Answer each JSON line of stdin: text, messages or ids");
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->add_option("text", options->text, "The text; from stdin where left out")->type_name("TEXT");
  verb->callback([options, &action] {
    action = [options] { return RunTokenize(*options, std::cin, std::cout, std::cerr); };
  });
}

}  // namespace banyan::client
