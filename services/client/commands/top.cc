// `banyan top`: is it well, how fast, why slow, how full, live in a terminal.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "services/client/commands/command.h"
#include "services/client/connection/request_flags.h"
#include "services/client/connection/server_connection.h"
#include "services/client/overview/overview.h"
#include "services/client/overview/overview_json.h"
#include "services/client/overview/overview_text.h"
#include "services/client/terminal/live_screen.h"

namespace banyan::client {
namespace {

constexpr int kPlainColumns = 120;

struct Options {
  ServerFlags server;
  std::string metrics = "127.0.0.1:9101";
  std::vector<std::string> expert_metrics;
  std::string output = "text";
  double interval_seconds = 2;
  bool once = false;
};

std::string Plain(const Options& options, const Overview& overview) {
  if (options.output == "json") return OverviewJson(overview).dump() + "\n";
  if (!options.once) return OverviewLine(overview) + "\n";
  std::string text;
  for (const std::string& line : OverviewLines(overview, kPlainColumns)) text += line + "\n";
  return text;
}

// A line or an object for every window; with --once a single one, whole.
int RunPlain(const Options& options, OverviewReader& reader) {
  Overview overview = reader.Read();
  if (!overview.server) return Fail(overview.problem);
  do {
    absl::SleepFor(absl::Seconds(options.interval_seconds));
    overview = reader.Read();
    const std::string text = Plain(options, overview);
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() ||
        std::fflush(stdout) != 0) {
      return Fail(StatusF(absl::StatusCode::kUnknown, "cannot write to stdout"));
    }
  } while (!options.once);
  return kExitOk;
}

int RunLive(const Options& options, OverviewReader& reader) {
  LiveScreen::BlockSignals();
  Overview overview = reader.Read();
  if (!overview.server) return Fail(overview.problem);
  LiveScreen screen;
  while (true) {
    const absl::Time next = overview.at + absl::Seconds(options.interval_seconds);
    LiveScreen::Event event;
    do {
      std::vector<std::string> lines = OverviewLines(overview, screen.columns());
      lines.insert(lines.end(), {"", "q: quit"});
      screen.Draw(lines);
      event = screen.Wait(next);
    } while (event == LiveScreen::Event::kResize);
    if (event == LiveScreen::Event::kQuit) return kExitOk;
    overview = reader.Read();  // a server that went is said on the screen; it may come back
  }
}

int Run(const Options& options) {
  if (absl::Status status = CheckServerAddress(options.server.address); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  OverviewReader reader({.server = options.server.address,
                         .metrics = options.metrics,
                         .expert_metrics = options.expert_metrics,
                         .patience = absl::Seconds(options.server.timeout_seconds)});
  const bool live = !options.once && options.output == "text" && isatty(STDIN_FILENO) == 1 &&
                    isatty(STDOUT_FILENO) == 1;
  return live ? RunLive(options, reader) : RunPlain(options, reader);
}

}  // namespace

void AddTop(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "top", "Live: is it well, tokens/s, latencies, why a step takes its time, how full it is");
  verb->add_option("--interval", options->interval_seconds, "Seconds between two looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  verb->add_flag("--once", options->once, "Look over one interval, print it and exit");
  verb->add_option("--output", options->output, "text, or json: one object an interval")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->add_option("--metrics", options->metrics, "Metrics address of the trunk; \"\": none")
      ->capture_default_str();
  verb->add_option("--expert_metrics", options->expert_metrics,
                   "Metrics addresses of the experts of shard 0, 1, ..., separated by commas "
                   "(default: the trunk's port + 10 and up)")
      ->delimiter(',');
  AddServerFlags(*verb, options->server, 1);
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
