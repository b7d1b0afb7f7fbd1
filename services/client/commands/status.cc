// `banyan status`: is it up, what does it serve, which shards are there, how busy is it.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/grpc_status.h"
#include "proto/inference/v1/inference.grpc.pb.h"
#include "services/client/commands/command.h"
#include "services/client/connection/cluster_load.h"
#include "services/client/connection/load_watcher.h"
#include "services/client/connection/metrics_scrape.h"
#include "services/client/connection/request_flags.h"
#include "services/client/connection/server_connection.h"
#include "services/client/connection/server_status.h"
#include "services/client/terminal/progress_view.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

using inference::v1::GetModelInfoResponse;
using nlohmann::ordered_json;

constexpr absl::Duration kMetricsPatience = absl::Milliseconds(500);
constexpr absl::Duration kRateWindow = absl::Seconds(1);
constexpr absl::Duration kPollInterval = absl::Milliseconds(100);

struct Options {
  ServerFlags server;
  std::string metrics = "127.0.0.1:9101";
  std::string output = "text";
  double watch_seconds = -1;  // 0: --watch without a value
  double wait_seconds = 0;
  bool health = false;
};

struct Rate {
  std::string name;  // "generated tokens"
  double total = 0;
  double per_second = 0;
};

struct Shown {
  ServerStatus server;
  std::vector<Rate> rates;  // empty where the metrics cannot be read
};

// A family such as banyan_trunk_generated_tokens_total by its words, if it belongs in an overview.
std::optional<std::string> RateName(const std::string& family) {
  constexpr std::string_view kPrefix = "banyan_trunk_", kSuffix = "_total";
  if (family.rfind(kPrefix, 0) != 0 || family.size() <= kPrefix.size() + kSuffix.size() ||
      family.compare(family.size() - kSuffix.size(), kSuffix.size(), kSuffix) != 0) {
    return std::nullopt;
  }
  std::string name = family.substr(kPrefix.size(), family.size() - kPrefix.size() - kSuffix.size());
  if (name.find("tokens") == std::string::npos && name.find("requests") == std::string::npos) {
    return std::nullopt;
  }
  for (char& c : name) c = c == '_' ? ' ' : c;
  return name;
}

std::vector<Rate> ReadRates(const std::string& address) {
  std::vector<Rate> rates;
  const auto before = ScrapeMetrics(address, kMetricsPatience);
  if (!before.ok()) return rates;
  const absl::Time begin = absl::Now();
  absl::SleepFor(kRateWindow);
  const auto after = ScrapeMetrics(address, kMetricsPatience);
  if (!after.ok()) return rates;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  for (const auto& [family, value] : after->Totals()) {
    const auto name = RateName(family);
    if (!name) continue;
    const double gained = Increase(before->Sum(family).value_or(0), value);
    rates.push_back({*name, value, gained / seconds});
  }
  return rates;
}

std::string ToText(const Options& options, const Shown& shown) {
  const ServerStatus& status = shown.server;
  const std::string phase = LoadPhaseName(status.progress.phase());
  const auto& progress = status.progress;
  std::string out = fmt::format("trunk {}: {}", options.server.address,
                                status.serving ? "serving" : "not serving");
  if (phase != "ready") {
    out += fmt::format(", load: {}", phase);
    if (progress.bytes_total() > 0) {
      out += fmt::format(" {} of {}", HumanBytes(static_cast<double>(progress.bytes_done())),
                         HumanBytes(static_cast<double>(progress.bytes_total())));
    }
    if (!progress.detail().empty()) out += ": " + progress.detail();
  }
  out += "\n";
  if (status.info) {
    const GetModelInfoResponse& info = *status.info;
    out += fmt::format(
        "model: {}, {} layers, hidden {}, {} experts top-{}, vocabulary {}, fingerprint {}\n",
        info.model_type(), info.num_hidden_layers(), info.hidden_size(), info.num_experts(),
        info.num_experts_per_tok(), info.vocab_size(), info.fingerprint().substr(0, 16));
    out += fmt::format(
        "limits: {} context tokens, {} sequences, {} tokens a step; backend {}, {} to the experts, "
        "server {}\n\n",
        info.max_context_tokens(), info.max_sequences(), info.max_batch_tokens(), info.backend(),
        info.expert_activations(), info.server_version());
    Table table({"shard", "replica", "state", "load", "split", "format", "kernels", "pool"});
    for (int i = 0; i < info.shards_size(); ++i) {
      const auto& shard = info.shards(i);
      for (const ReplicaStatus& replica : status.shards[static_cast<size_t>(i)]) {
        table.AddRow({std::to_string(shard.index()), replica.address, replica.state,
                      replica.progress ? LoadPhaseName(replica.progress->phase()) : "?",
                      shard.split(), shard.pool_format(), shard.kernel_tier(),
                      HumanBytes(static_cast<double>(shard.pool_bytes()))});
      }
    }
    out += table.ToText();
  }
  if (!shown.rates.empty()) {
    Table table({"rate", "per second", "total"});
    for (const Rate& rate : shown.rates) {
      table.AddRow(
          {rate.name, fmt::format("{:.1f}", rate.per_second), fmt::format("{:.0f}", rate.total)});
    }
    out += "\n" + table.ToText();
  }
  return out;
}

ordered_json ToJson(const Options& options, const Shown& shown) {
  const ServerStatus& status = shown.server;
  const std::string phase = LoadPhaseName(status.progress.phase());
  ordered_json json = {{"server", options.server.address},
                       {"serving", status.serving},
                       {"load",
                        {{"phase", phase},
                         {"bytes_done", status.progress.bytes_done()},
                         {"bytes_total", status.progress.bytes_total()},
                         {"elapsed_seconds", status.progress.elapsed_seconds()},
                         {"detail", status.progress.detail()}}}};
  if (status.info) {
    const GetModelInfoResponse& info = *status.info;
    json["model"] = {{"model_type", info.model_type()},
                     {"fingerprint", info.fingerprint()},
                     {"server_version", info.server_version()},
                     {"num_hidden_layers", info.num_hidden_layers()},
                     {"hidden_size", info.hidden_size()},
                     {"vocab_size", info.vocab_size()},
                     {"num_experts", info.num_experts()},
                     {"num_experts_per_tok", info.num_experts_per_tok()},
                     {"max_context_tokens", info.max_context_tokens()},
                     {"max_sequences", info.max_sequences()},
                     {"max_batch_tokens", info.max_batch_tokens()},
                     {"has_tokenizer", info.has_tokenizer()},
                     {"has_chat_template", info.has_chat_template()},
                     {"backend", info.backend()},
                     {"expert_activations", info.expert_activations()}};
    json["shards"] = ordered_json::array();
    for (int i = 0; i < info.shards_size(); ++i) {
      const auto& shard = info.shards(i);
      ordered_json replicas = ordered_json::array();
      for (const ReplicaStatus& replica : status.shards[static_cast<size_t>(i)]) {
        replicas.push_back(
            {{"address", replica.address},
             {"state", replica.state},
             {"load", replica.progress ? LoadPhaseName(replica.progress->phase()) : ""}});
      }
      json["shards"].push_back({{"index", shard.index()},
                                {"split", shard.split()},
                                {"pool_format", shard.pool_format()},
                                {"kernel_tier", shard.kernel_tier()},
                                {"pool_bytes", shard.pool_bytes()},
                                {"replicas", std::move(replicas)}});
    }
  }
  json["rates"] = ordered_json::array();
  for (const Rate& rate : shown.rates) {
    json["rates"].push_back(
        {{"name", rate.name}, {"per_second", rate.per_second}, {"total", rate.total}});
  }
  return json;
}

absl::StatusOr<Shown> Read(const Options& options) {
  Shown shown;
  ASSIGN_OR_RETURN(const auto channel, Connect(options.server.address, kConnectPatience));
  ASSIGN_OR_RETURN(shown.server,
                   ReadServerStatus(channel, options.server.address, options.server.Deadline()));
  if (!options.metrics.empty()) shown.rates = ReadRates(options.metrics);
  return shown;
}

// OK when the server says that it serves, else why not. Trunks and expert hosts answer alike.
absl::Status CheckServing(const std::string& address, absl::Time deadline) {
  ASSIGN_OR_RETURN(const auto channel,
                   Connect(address, std::min(deadline - absl::Now(), kConnectPatience)));
  ASSIGN_OR_RETURN(const bool serving, ReadServing(channel, address, deadline));
  if (serving) return absl::OkStatus();
  return StatusF(absl::StatusCode::kUnavailable, "{} does not serve yet", address);
}

// Until the server says that it serves; the last reason why not.
absl::Status WaitUntilServing(const Options& options) {
  const absl::Time deadline = absl::Now() + absl::Seconds(options.wait_seconds);
  for (;;) {
    const absl::Status why = CheckServing(options.server.address, deadline);
    if (why.ok()) return why;
    if (absl::Now() + kPollInterval >= deadline) {
      return Annotate(why, fmt::format("not ready after {:g} s", options.wait_seconds));
    }
    absl::SleepFor(kPollInterval);
  }
}

// A line of rows for scripts.
std::string RowsJson(const std::vector<LoadRow>& rows) {
  ordered_json services = ordered_json::array();
  for (const LoadRow& row : rows) {
    services.push_back({{"name", row.name},
                        {"phase", row.phase},
                        {"bytes_done", row.bytes_done},
                        {"bytes_total", row.bytes_total},
                        {"bytes_per_second", row.bytes_per_second},
                        {"remaining_seconds", row.remaining_seconds},
                        {"elapsed_seconds", row.elapsed_seconds},
                        {"cpus", row.cpus},
                        {"resident_bytes", row.resident_bytes},
                        {"detail", row.detail}});
  }
  return ordered_json{{"services", std::move(services)}}.dump(
      -1, ' ', false, ordered_json::error_handler_t::replace);
}

// The loads of the trunk and its experts, live until the trunk is ready.
int WatchLoads(const Options& options) {
  ClusterLoad load(options.server.address);
  ProgressView view(stdout, isatty(STDOUT_FILENO) == 1);
  const bool json = options.output == "json";
  absl::Time next = absl::InfinitePast();
  for (;;) {
    const std::vector<LoadRow> rows = load.Rows();
    const bool over = load.ready() || load.failed();
    if (!json) {
      view.Update(rows);
    } else if (over || absl::Now() >= next) {
      fmt::print("{}\n", RowsJson(rows));
      std::fflush(stdout);
      next = absl::Now() + kRateWindow;
    }
    if (load.ready()) return kExitOk;
    if (load.failed()) {
      return Fail(StatusF(absl::StatusCode::kFailedPrecondition, "{} could not load: {}",
                          options.server.address, load.detail()));
    }
    absl::SleepFor(kPollInterval);
  }
}

int Run(const Options& options) {
  if (absl::Status status = CheckServerAddress(options.server.address); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (options.wait_seconds > 0) {
    if (absl::Status status = WaitUntilServing(options); !status.ok()) return Fail(status);
  }
  if (options.health) {
    const absl::Status status = CheckServing(options.server.address, options.server.Deadline());
    if (!status.ok()) return Fail(status);
    fmt::print("{}: serving\n", options.server.address);
    return kExitOk;
  }
  if (options.watch_seconds == 0) return WatchLoads(options);
  for (;;) {
    const auto status = Read(options);
    if (options.watch_seconds <= 0 && !status.ok()) return Fail(status.status());
    std::string text;
    if (!status.ok()) {
      text = fmt::format("{}\n", ToStd(status.status().message()));
    } else if (options.output == "json") {
      text = ToJson(options, *status).dump(options.watch_seconds > 0 ? -1 : 1) + "\n";
    } else {
      text = ToText(options, *status);
    }
    const bool redraw = options.watch_seconds > 0 && isatty(STDOUT_FILENO) == 1;
    fmt::print("{}{}", redraw ? "\x1b[H\x1b[2J" : "", text);
    std::fflush(stdout);
    if (options.watch_seconds <= 0) return kExitOk;
    absl::SleepFor(absl::Seconds(options.watch_seconds));
  }
}

}  // namespace

void AddStatus(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("status", "The trunk, its shards, their load, its rates");
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  auto* watch = verb->add_option("--watch", options->watch_seconds,
                                 "Show the loads of the trunk and its experts until it serves; "
                                 "with N: show all of it again every N seconds")
                    ->check(CLI::NonNegativeNumber)
                    ->expected(0, 1)
                    ->default_str("0")
                    ->type_name("N");
  verb->add_option("--wait", options->wait_seconds, "First wait up to N seconds until it serves")
      ->check(CLI::PositiveNumber);
  verb->add_flag("--health", options->health,
                 "Only ask whether it serves, a trunk or an expert host: exit code 0 or 1")
      ->excludes(watch);
  verb->add_option("--metrics", options->metrics,
                   "Metrics address of the trunk, for the rates; \"\": none")
      ->capture_default_str();
  AddServerFlags(*verb, options->server, 5);
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
