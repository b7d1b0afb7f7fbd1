#include "services/client/load/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

using nlohmann::ordered_json;

Latencies Summarise(std::vector<double>& seconds) {
  Latencies out;
  if (seconds.empty()) return out;
  out.mean =
      std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  out.p50 = Percentile(seconds, 50);
  out.p90 = Percentile(seconds, 90);
  out.p99 = Percentile(seconds, 99);
  return out;
}

ordered_json ToJson(const Latencies& latencies) {
  return {{"mean", latencies.mean},
          {"p50", latencies.p50},
          {"p90", latencies.p90},
          {"p99", latencies.p99}};
}

std::vector<std::string> Row(const char* name, const Latencies& latencies) {
  const auto cell = [](double seconds) { return fmt::format("{:.2f}", seconds * 1e3); };
  return {name, cell(latencies.mean), cell(latencies.p50), cell(latencies.p90),
          cell(latencies.p99)};
}

}  // namespace

double Percentile(std::vector<double>& values, double percent) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(percent / 100 * static_cast<double>(values.size()));
  const auto index = static_cast<int64_t>(rank) - 1;
  return values[static_cast<size_t>(
      std::clamp<int64_t>(index, 0, static_cast<int64_t>(values.size()) - 1))];
}

double LoadReport::OutputTokensPerSecond() const {
  return elapsed_seconds > 0 ? static_cast<double>(output_tokens) / elapsed_seconds : 0;
}
double LoadReport::PromptTokensPerSecond() const {
  return elapsed_seconds > 0 ? static_cast<double>(prompt_tokens) / elapsed_seconds : 0;
}
double LoadReport::RequestsPerSecond() const {
  return elapsed_seconds > 0 ? static_cast<double>(num_succeeded) / elapsed_seconds : 0;
}

LoadReport MakeReport(const std::vector<LoadOutcome>& outcomes) {
  LoadReport report;
  report.num_requests = static_cast<int64_t>(outcomes.size());
  std::vector<double> ttft, itl, end_to_end;
  absl::Time begin = absl::InfiniteFuture();
  absl::Time end = absl::InfinitePast();
  for (const LoadOutcome& outcome : outcomes) {
    const Generation& generation = outcome.generation;
    begin = std::min(begin, generation.sent);
    end = std::max(end, outcome.ended);
    report.output_tokens += static_cast<int64_t>(generation.token_ids.size());
    report.prompt_tokens += generation.started.prompt_tokens();
    for (absl::Duration gap : generation.token_gaps) itl.push_back(absl::ToDoubleSeconds(gap));
    if (!outcome.status.ok()) {
      const std::string code = absl::StatusCodeToString(outcome.status.code());
      ++report.errors[code];
      report.error_texts.emplace(code, std::string(outcome.status.message()));
      continue;
    }
    ++report.num_succeeded;
    end_to_end.push_back(absl::ToDoubleSeconds(outcome.ended - generation.sent));
    if (!generation.token_ids.empty()) {
      ttft.push_back(absl::ToDoubleSeconds(generation.TimeToFirstToken()));
    }
  }
  if (!outcomes.empty()) report.elapsed_seconds = absl::ToDoubleSeconds(end - begin);
  report.ttft = Summarise(ttft);
  report.itl = Summarise(itl);
  report.end_to_end = Summarise(end_to_end);
  return report;
}

std::string LoadReport::ToText() const {
  std::string out = fmt::format("{} of {} requests in {}: {:.2f} requests/s\n", num_succeeded,
                                num_requests, HumanSeconds(elapsed_seconds), RequestsPerSecond());
  out += fmt::format("{} prompt tokens ({:.1f}/s), {} output tokens ({:.1f}/s)\n\n", prompt_tokens,
                     PromptTokensPerSecond(), output_tokens, OutputTokensPerSecond());
  Table table({"milliseconds", "mean", "p50", "p90", "p99"});
  table.AddRow(Row("time to first token", ttft));
  table.AddRow(Row("between tokens", itl));
  table.AddRow(Row("whole request", end_to_end));
  out += table.ToText();
  for (const auto& [code, count] : errors) {
    out += fmt::format("\n{} x {}: {}\n", count, code, error_texts.at(code));
  }
  return out;
}

ordered_json LoadReport::ToJson() const {
  ordered_json json = {{"requests", num_requests},
                       {"succeeded", num_succeeded},
                       {"errors", errors},
                       {"elapsed_seconds", elapsed_seconds},
                       {"prompt_tokens", prompt_tokens},
                       {"output_tokens", output_tokens},
                       {"requests_per_second", RequestsPerSecond()},
                       {"prompt_tokens_per_second", PromptTokensPerSecond()},
                       {"output_tokens_per_second", OutputTokensPerSecond()}};
  json["ttft_seconds"] = client::ToJson(ttft);
  json["itl_seconds"] = client::ToJson(itl);
  json["end_to_end_seconds"] = client::ToJson(end_to_end);
  if (!error_texts.empty()) json["error_texts"] = error_texts;
  return json;
}

}  // namespace banyan::client
