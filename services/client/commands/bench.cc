// `banyan bench`: how fast a server is under load, and (--eval) whether its answers are right.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/grpc_status.h"
#include "services/client/commands/command.h"
#include "services/client/connection/request_flags.h"
#include "services/client/connection/server_connection.h"
#include "services/client/load/eval_file.h"
#include "services/client/load/load_run.h"
#include "services/client/load/report.h"

namespace banyan::client {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GetModelInfoResponse;

constexpr int32_t kDefaultNewTokens = 64;

struct Options {
  ServerFlags server;
  SamplingFlags sampling;
  int32_t concurrency = 1;
  double rate = 0;
  int64_t requests = 32;
  int32_t prompt_tokens = 128;
  std::string prompts;
  std::string eval;
  bool natural_end = false;
  std::string output = "text";
};

absl::StatusOr<GetModelInfoResponse> ReadModelInfo(const std::shared_ptr<grpc::Channel>& channel,
                                                   const std::string& address) {
  auto stub = inference::v1::Inference::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  GetModelInfoResponse info;
  const absl::Status status =
      FromGrpc(stub->GetModelInfo(&context, inference::v1::GetModelInfoRequest(), &info));
  if (!status.ok()) return ExplainCall(status, address);
  return info;
}

// Ids of ordinary text: special tokens and padding rows sit at the end of every vocabulary of this
// family (the last 2 % of the demo's, the last 0.2 % of the full-size one).
std::vector<int32_t> RandomPrompt(int32_t num_tokens, int32_t vocab_size, std::mt19937_64& random) {
  const auto limit = static_cast<uint64_t>(std::max(1, vocab_size - vocab_size / 32 - 1));
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < num_tokens; ++i) ids.push_back(static_cast<int32_t>(random() % limit));
  return ids;
}

// Counts what has ended, on a terminal only.
class Counter {
 public:
  Counter(const char* what, int64_t total)
      : what_(what), total_(total), shown_(isatty(STDERR_FILENO) == 1) {}
  ~Counter() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  void operator()(int64_t done) const {
    if (shown_) fmt::print(stderr, "\r{}: {} of {}\x1b[K", what_, done, total_);
  }

 private:
  const char* what_;
  int64_t total_;
  bool shown_;
};

std::vector<LoadOutcome> RunCounted(const std::shared_ptr<grpc::Channel>& channel,
                                    const LoadOptions& options, const char* what,
                                    const std::function<GenerateRequest(int64_t)>& make_request) {
  const Counter counter(what, options.num_requests);
  return RunLoad(channel, options, make_request, [&](int64_t done) { counter(done); });
}

LoadOptions MakeLoadOptions(const Options& options) {
  LoadOptions load;
  load.address = options.server.address;
  load.num_requests = options.requests;
  load.concurrency = options.concurrency;
  load.rate = options.rate;
  load.seed = options.sampling.seed.value_or(0);
  if (options.server.timeout_seconds > 0) {
    load.timeout = absl::Seconds(options.server.timeout_seconds);
  }
  return load;
}

void Print(const Options& options, const LoadReport& report, const nlohmann::ordered_json& json) {
  if (options.output == "json") {
    fmt::print("{}\n", json.dump(1));
  } else {
    fmt::print("{}", report.ToText());
  }
  std::fflush(stdout);
}

int Conclude(const LoadReport& report) {
  if (report.errors.empty()) return kExitOk;
  return Fail(StatusF(absl::StatusCode::kUnknown, "{} of {} requests failed; the first: {}",
                      report.num_requests - report.num_succeeded, report.num_requests,
                      report.error_texts.begin()->second));
}

int RunEval(const Options& options, const std::shared_ptr<grpc::Channel>& channel,
            const GetModelInfoResponse& info) {
  auto cases = LoadEvalFile(options.eval);
  if (!cases.ok()) return Fail(cases.status());
  LoadOptions load = MakeLoadOptions(options);
  load.num_requests = static_cast<int64_t>(cases->size());
  const auto answers = RunCounted(channel, load, "answered", [&](int64_t i) {
    return AnswerRequest((*cases)[static_cast<size_t>(i)]);
  });
  const auto scores = RunCounted(channel, load, "scored", [&](int64_t i) {
    return ScoreRequest((*cases)[static_cast<size_t>(i)]);
  });
  const std::vector<int32_t> eos(info.eos_token_ids().begin(), info.eos_token_ids().end());
  const auto score = ScoreEval(*cases, eos, answers, scores);
  if (!score.ok()) return Fail(score.status());

  const LoadReport report = MakeReport(answers);
  nlohmann::ordered_json json = {{"cases", score->num_cases},
                                 {"one_answer", score->num_one_answer},
                                 {"exact", score->num_exact},
                                 {"mismatches", score->mismatches},
                                 {"answer_tokens", score->num_answer_tokens},
                                 {"perplexity", score->perplexity},
                                 {"load", report.ToJson()}};
  json["answers"] = nlohmann::ordered_json::array();
  for (const LoadOutcome& answer : answers) json["answers"].push_back(answer.generation.token_ids);
  if (options.output == "text") {
    fmt::print("{} of {} answers exact, perplexity {:.4f} over {} answer tokens\n",
               score->num_exact, score->num_one_answer, score->perplexity,
               score->num_answer_tokens);
  }
  Print(options, report, json);
  return Conclude(report);
}

int RunBench(const Options& options, const std::shared_ptr<grpc::Channel>& channel,
             const GetModelInfoResponse& info) {
  std::vector<EvalCase> cases;
  if (!options.prompts.empty()) {
    auto loaded = LoadEvalFile(options.prompts);
    if (!loaded.ok()) return Fail(loaded.status());
    cases = *std::move(loaded);
  }
  std::mt19937_64 random(options.sampling.seed.value_or(0));
  const auto make_request = [&](int64_t i) {
    GenerateRequest request;
    // Checked before the run began.
    options.sampling.Fill(request).IgnoreError();
    if (!options.natural_end) request.set_ignore_eos(true);
    if (!options.sampling.max_new_tokens) {
      request.mutable_sampling()->set_max_new_tokens(kDefaultNewTokens);
    }
    const std::vector<int32_t> ids =
        cases.empty() ? RandomPrompt(options.prompt_tokens, info.vocab_size(), random)
                      : cases[static_cast<size_t>(i) % cases.size()].prompt_ids;
    request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
    return request;
  };
  const LoadReport report =
      MakeReport(RunCounted(channel, MakeLoadOptions(options), "answered", make_request));
  nlohmann::ordered_json json = report.ToJson();
  if (options.rate > 0) {
    json["rate"] = options.rate;
  } else {
    json["concurrency"] = options.concurrency;
  }
  Print(options, report, json);
  return Conclude(report);
}

int Run(const Options& options) {
  GenerateRequest checked;
  if (absl::Status status = options.sampling.Fill(checked); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (absl::Status status = CheckServerAddress(options.server.address); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  const auto channel = Connect(options.server.address, kConnectPatience);
  if (!channel.ok()) return Fail(channel.status());
  const auto info = ReadModelInfo(*channel, options.server.address);
  if (!info.ok()) return Fail(info.status());
  return options.eval.empty() ? RunBench(options, *channel, *info)
                              : RunEval(options, *channel, *info);
}

}  // namespace

void AddBench(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "bench", "Measure throughput and latencies under load, or the answers to an eval file");
  auto* concurrency =
      verb->add_option("--concurrency", options->concurrency, "Closed loop: requests at a time")
          ->check(CLI::Range(1, 100000))
          ->capture_default_str();
  verb->add_option("--rate", options->rate, "Open loop: Poisson arrivals per second")
      ->check(CLI::PositiveNumber)
      ->excludes(concurrency);
  verb->add_option("--requests", options->requests, "How many in all")
      ->check(CLI::Range(int64_t{1}, int64_t{10000000}))
      ->capture_default_str();
  auto* length =
      verb->add_option("--prompt_tokens", options->prompt_tokens, "Length of the random prompts")
          ->check(CLI::Range(1, 1 << 20))
          ->capture_default_str();
  auto* prompts =
      verb->add_option("--prompts", options->prompts, "Take the prompts of an eval file, in turn")
          ->excludes(length)
          ->type_name("FILE");
  verb->add_option("--eval", options->eval,
                   "Check an eval file: exact greedy answers, perplexity of the known ones")
      ->type_name("FILE")
      ->excludes(length)
      ->excludes(prompts);
  verb->add_flag("--natural_end", options->natural_end,
                 "Let answers end at end tokens, instead of after --max_new_tokens (64)");
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  AddServerFlags(*verb, options->server, 0);
  AddSamplingFlags(*verb, options->sampling);
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
