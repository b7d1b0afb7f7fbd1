// `banyan generate`: one prompt in, one answer out.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/client/commands/command.h"
#include "services/client/connection/generation.h"
#include "services/client/connection/generation_json.h"
#include "services/client/connection/request_flags.h"
#include "services/client/connection/server_connection.h"

namespace banyan::client {
namespace {

struct Options {
  ServerFlags server;
  SamplingFlags sampling;
  TraceFlags trace;
  std::optional<std::string> prompt;
  std::string ids;
  bool chat = false;
  std::string system;
  std::string request_id;
  std::string output = "text";
  bool stream = false;
  bool stats = false;
  int32_t num_logprobs = 0;
  bool prompt_logprobs = false;
};

absl::Status ParseIds(std::string_view text, inference::v1::TokenIds& ids) {
  size_t at = 0;
  while (at < text.size()) {
    if (text[at] == ',' || text[at] == ' ' || text[at] == '[' || text[at] == ']') {
      ++at;
      continue;
    }
    int32_t id = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), id);
    if (error != std::errc()) {
      return InvalidArgumentF("--ids: '{}' is no token id", Printable(text.substr(at), 20));
    }
    ids.add_ids(id);
    at = static_cast<size_t>(end - text.data());
  }
  return absl::OkStatus();
}

absl::Status FillPrompt(const Options& options, inference::v1::GenerateRequest& request) {
  if (!options.ids.empty()) {
    if (options.prompt || options.chat || !options.system.empty()) {
      return InvalidArgumentF("--ids takes the place of PROMPT, --chat and --system: give one");
    }
    return ParseIds(options.ids, *request.mutable_token_ids());
  }
  std::string text;
  if (options.prompt) {
    text = *options.prompt;
  } else {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  if (!options.chat && options.system.empty()) {
    request.set_text(text);
    return absl::OkStatus();
  }
  while (!text.empty() && text.back() == '\n' && !options.prompt) text.pop_back();
  if (!options.system.empty()) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role("system");
    message->set_content(options.system);
  }
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(text);
  return absl::OkStatus();
}

int Run(const Options& options) {
  inference::v1::GenerateRequest request;
  if (absl::Status status = options.sampling.Fill(request); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (absl::Status status = CheckServerAddress(options.server.address); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (absl::Status status = options.trace.Check(); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (absl::Status status = FillPrompt(options, request); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  request.set_request_id(options.request_id);
  request.set_num_logprobs(options.num_logprobs);
  request.set_prompt_logprobs(options.prompt_logprobs);

  auto channel = Connect(options.server.address, kConnectPatience);
  if (!channel.ok()) return Fail(channel.status());
  auto stub = inference::v1::Inference::NewStub(*channel);

  const bool json = options.output == "json";
  grpc::ClientContext context;
  if (options.server.timeout_seconds > 0) {
    context.set_deadline(absl::ToChronoTime(options.server.Deadline()));
  }
  options.trace.Fill(context);
  Generation generation(absl::Now());
  const absl::Status status =
      RunGenerate(*stub, request, options.server.address, context, generation,
                  [&](const inference::v1::GenerateResponse& event) {
                    if (!options.stream) return;
                    if (json) {
                      std::cout << EventJson(event).dump() << std::endl;
                    } else if (event.has_chunk()) {
                      std::cout << event.chunk().text() << std::flush;
                    }
                  });
  if (json && !options.stream && status.ok()) {
    std::cout << GenerationJson(generation).dump() << std::endl;
  } else if (!json) {
    if (!options.stream && status.ok()) std::cout << generation.text;
    if (options.stream || status.ok()) std::cout << std::endl;
  }
  if (!status.ok()) return Fail(status);
  if (!std::cout) {
    return Fail(StatusF(absl::StatusCode::kUnknown, "cannot write the answer to stdout"));
  }
  if (options.stats) fmt::print(stderr, "[{}]\n", DescribeSpeed(generation));
  return kExitOk;
}

}  // namespace

void AddGenerate(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("generate", "Continue a prompt, or answer it with --chat");
  verb->add_option("prompt", options->prompt, "The prompt; stdin when absent");
  verb->add_flag("--chat", options->chat, "Ask it as a user's message, in the chat template");
  verb->add_option("--system", options->system, "System message; implies --chat");
  verb->add_option("--ids", options->ids, "Prompt as token ids: 1,2,3");
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->add_flag("--stream", options->stream, "Print as it comes (json: one event per line)");
  verb->add_flag("--stats", options->stats, "Say on stderr how fast it was");
  verb->add_option("--num_logprobs", options->num_logprobs,
                   "Alternatives per token in the json, 0..20");
  verb->add_flag("--prompt_logprobs", options->prompt_logprobs,
                 "Log-probabilities of the prompt's tokens in the json");
  verb->add_option("--request_id", options->request_id, "Name of the request in the server's log");
  AddTraceFlags(*verb, options->trace);
  AddServerFlags(*verb, options->server, 0);
  AddSamplingFlags(*verb, options->sampling);
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
