#include "services/client/overview/overview_json.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/strings.h"
#include "services/client/connection/load_watcher.h"

namespace banyan::client {
namespace {

using nlohmann::ordered_json;

ordered_json Json(const Percentiles& times) {
  if (!(times.count > 0)) return nullptr;
  return {{"count", times.count},
          {"mean", times.mean},
          {"p50", times.p50},
          {"p95", times.p95},
          {"p99", times.p99}};
}

ordered_json Json(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json Json(const Figures::Use& use) { return {{"used", use.used}, {"total", use.total}}; }

ordered_json Json(const common::v1::LoadProgress& progress) {
  return {{"phase", LoadPhaseName(progress.phase())},
          {"bytes_done", progress.bytes_done()},
          {"bytes_total", progress.bytes_total()},
          {"elapsed_seconds", progress.elapsed_seconds()},
          {"detail", progress.detail()}};
}

ordered_json Json(const ServerStatus& server) {
  ordered_json shards = ordered_json::array();
  for (const auto& shard : server.shards) {
    ordered_json replicas = ordered_json::array();
    for (const ReplicaStatus& replica : shard) {
      replicas.push_back(
          {{"address", replica.address},
           {"state", replica.state},
           {"load", replica.progress ? Json(*replica.progress) : ordered_json(nullptr)}});
    }
    shards.push_back({{"replicas", std::move(replicas)}});
  }
  return {{"serving", server.serving}, {"load", Json(server.progress)}, {"shards", shards}};
}

ordered_json Json(const Figures& figures) {
  ordered_json json = {{"running_requests", figures.running_requests},
                       {"queued_requests", figures.queued_requests},
                       {"pages", Json(figures.pages)},
                       {"slots", Json(figures.slots)}};
  json["window_seconds"] = figures.has_window ? ordered_json(figures.window_seconds) : nullptr;
  if (figures.has_window) {
    json["requests_per_second"] = figures.ended_per_second;
    json["generated_tokens_per_second"] = figures.generated_per_second;
    json["prompt_tokens_per_second"] = figures.prompt_per_second;
    json["ttft_seconds"] = Json(figures.ttft);
    json["itl_seconds"] = Json(figures.itl);
    json["queue_seconds"] = Json(figures.queue);
    ordered_json split = ordered_json::object();
    for (const Figures::Share& part : figures.step_split) {
      split[part.name] = {{"seconds", part.seconds_per_step}, {"share", part.share}};
    }
    json["step"] = {{"per_second", figures.steps_per_second},
                    {"seconds", figures.step_seconds},
                    {"rows", figures.rows_per_step},
                    {"busy", figures.busy},
                    {"split", std::move(split)}};
  }
  return json;
}

}  // namespace

ordered_json OverviewJson(const Overview& overview) {
  const Figures& figures = overview.figures;
  ordered_json json = {
      {"time", absl::FormatTime(absl::RFC3339_sec, overview.at, absl::UTCTimeZone())},
      {"address", overview.address}};
  json["server"] = overview.server ? Json(*overview.server) : ordered_json(nullptr);
  if (!overview.server) json["problem"] = std::string(ToStd(overview.problem.message()));
  json["figures"] = figures.has_trunk ? Json(figures) : ordered_json(nullptr);
  if (!figures.has_trunk) json["metrics_problem"] = overview.metrics_problem;
  json["experts"] = ordered_json::array();
  for (const Figures::Shard& shard : figures.shards) {
    json["experts"].push_back({{"shard", shard.name},
                               {"calls_per_second", shard.calls_per_second},
                               {"call_seconds", Json(shard.call)},
                               {"queue_seconds", shard.queue},
                               {"compute_seconds", shard.compute},
                               {"transport_seconds", shard.transport},
                               {"weight_bytes_per_second", Json(shard.weight_bytes_per_second)},
                               {"loaded_bytes", Json(shard.loaded_bytes)},
                               {"pool_bytes", Json(shard.pool_bytes)}});
  }
  json["trouble"] = ordered_json::array();
  for (const Figures::Trouble& trouble : figures.troubles) {
    json["trouble"].push_back(
        {{"name", trouble.name}, {"total", trouble.total}, {"gained", trouble.gained}});
  }
  return json;
}

}  // namespace banyan::client
