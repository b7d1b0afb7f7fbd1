#include "services/client/overview/overview_text.h"

#include <algorithm>
#include <cmath>

#include "common/base/strings.h"
#include "services/client/connection/load_row.h"
#include "services/client/connection/load_watcher.h"
#include "services/client/terminal/progress_view.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

constexpr size_t kBarCells = 24;
constexpr size_t kMostTroubles = 8;

std::string Time(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 0.1) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 1) return fmt::format("{:.0f} ms", seconds * 1e3);
  return fmt::format("{:.1f} s", seconds);
}

std::string Bar(double share) {
  const double cells = std::round(std::clamp(share, 0.0, 1.0) * kBarCells);
  const auto full = static_cast<size_t>(cells);
  return "[" + std::string(full, '#') + std::string(kBarCells - full, '-') + "]";
}

std::string Times(const Percentiles& times) {
  if (!(times.count > 0)) return "none in this window";
  return fmt::format("p50 {:>8}   p95 {:>8}   p99 {:>8}   of {:.0f}", Time(times.p50),
                     Time(times.p95), Time(times.p99), times.count);
}

bool IsReady(const common::v1::LoadProgress& progress) {
  return progress.phase() == common::v1::LoadProgress::READY;
}

std::string Health(const Overview& overview) {
  if (!overview.server) return "not reached: " + std::string(ToStd(overview.problem.message()));
  const ServerStatus& server = *overview.server;
  if (server.serving) return "serving";
  if (IsReady(server.progress)) return "not serving: an expert shard is missing, or it drains";
  std::string text = "loading: " + LoadPhaseName(server.progress.phase());
  if (!server.progress.detail().empty()) text += ", " + server.progress.detail();
  return text;
}

struct Replicas {
  size_t ready = 0, all = 0;
  std::string states;  // of those that are not ready
};

Replicas ReplicasOf(const std::vector<ReplicaStatus>& shard) {
  Replicas out;
  for (const ReplicaStatus& replica : shard) {
    ++out.all;
    if (replica.state == "ready") {
      ++out.ready;
    } else {
      out.states += (out.states.empty() ? " " : ", ") + replica.state;
    }
  }
  return out;
}

std::vector<LoadRow> Loading(const Overview& overview) {
  std::vector<LoadRow> rows;
  if (overview.server && !IsReady(overview.server->progress)) {
    rows.push_back(LoadRowOf("trunk", overview.server->progress));
  }
  if (overview.server && overview.server->info) {
    for (size_t i = 0; i < overview.server->shards.size(); ++i) {
      for (const ReplicaStatus& replica : overview.server->shards[i]) {
        if (replica.progress && !IsReady(*replica.progress)) {
          rows.push_back(LoadRowOf(fmt::format("expert {}", i), *replica.progress));
        }
      }
    }
    return rows;
  }
  // The trunk does not know its shards yet; the experts' own metrics do.
  for (const Figures::Shard& shard : overview.figures.shards) {
    if (!shard.pool_bytes || !shard.loaded_bytes || *shard.loaded_bytes >= *shard.pool_bytes) {
      continue;
    }
    LoadRow row;
    row.name = "expert " + shard.name;
    row.phase = "read";
    row.bytes_done = static_cast<uint64_t>(*shard.loaded_bytes);
    row.bytes_total = static_cast<uint64_t>(*shard.pool_bytes);
    rows.push_back(std::move(row));
  }
  return rows;
}

class Page {
 public:
  explicit Page(int columns) : columns_(static_cast<size_t>(std::max(columns, 1))) {}

  void Add(std::string_view name, std::string_view text) {
    AddRaw(fmt::format("{:<10}{}", name, text));
  }
  void AddRaw(std::string_view line) {
    std::string safe = Printable(line, 4 * columns_);
    if (safe.size() > columns_) safe.resize(columns_);
    while (!safe.empty() && safe.back() == ' ') safe.pop_back();
    lines_.push_back(std::move(safe));
  }
  void Gap() { lines_.emplace_back(); }
  std::vector<std::string> Take() { return std::move(lines_); }

 private:
  const size_t columns_;
  std::vector<std::string> lines_;
};

void AddSpeed(const Figures& figures, Page& page) {
  if (!figures.has_window) {
    page.Add("requests", fmt::format("{:.0f} running   {:.0f} queued", figures.running_requests,
                                     figures.queued_requests));
    return;
  }
  page.Add("requests",
           fmt::format("{:.0f} running   {:.0f} queued   {:.1f} ended/s", figures.running_requests,
                       figures.queued_requests, figures.ended_per_second));
  page.Add("tokens", fmt::format("{:.1f}/s out   {:.1f}/s in", figures.generated_per_second,
                                 figures.prompt_per_second));
  page.Add("TTFT", Times(figures.ttft));
  page.Add("ITL", Times(figures.itl));
  page.Add("queue", Times(figures.queue));
}

void AddSteps(const Figures& figures, Page& page) {
  page.Gap();
  if (!(figures.steps_per_second > 0)) {
    page.Add("step", "none in this window");
    return;
  }
  page.Add("step", fmt::format("{} each, {:.1f}/s, {:.1f} rows; the loop is busy {:.0f} %",
                               Time(figures.step_seconds), figures.steps_per_second,
                               figures.rows_per_step, figures.busy * 100));
  for (const Figures::Share& part : figures.step_split) {
    page.Add(" " + part.name, fmt::format("{} {:>3.0f} %  {:>8}", Bar(part.share), part.share * 100,
                                          Time(part.seconds_per_step)));
  }
}

void AddShards(const Overview& overview, Page& page) {
  Table table(
      {"expert", "replicas", "calls/s", "p50", "p95", "queue", "compute", "transport", "weights"});
  const std::vector<Figures::Shard>& figures = overview.figures.shards;
  const size_t from_server = overview.server ? overview.server->shards.size() : 0;
  const size_t count = std::max(figures.size(), from_server);
  if (count == 0) return;
  for (size_t i = 0; i < count; ++i) {
    std::vector<std::string> row = {i < figures.size() ? figures[i].name : std::to_string(i), "?"};
    if (i < from_server) {
      const Replicas replicas = ReplicasOf(overview.server->shards[i]);
      row[1] = fmt::format("{}/{} ready{}", replicas.ready, replicas.all, replicas.states);
    }
    if (i < figures.size() && figures[i].call.count > 0) {
      const Figures::Shard& shard = figures[i];
      row.insert(row.end(), {fmt::format("{:.0f}", shard.calls_per_second), Time(shard.call.p50),
                             Time(shard.call.p95), Time(shard.queue), Time(shard.compute),
                             Time(shard.transport)});
    } else {
      row.insert(row.end(), 6, "-");
    }
    row.push_back(i < figures.size() && figures[i].weight_bytes_per_second
                      ? fmt::format("{:.1f} GB/s", *figures[i].weight_bytes_per_second / 1e9)
                      : "-");
    table.AddRow(std::move(row));
  }
  page.Gap();
  std::string text = table.ToText();
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    page.AddRaw(std::string_view(text).substr(at, end - at));
    at = end + 1;
  }
}

void AddUse(std::string_view name, const Figures::Use& use, Page& page) {
  if (!(use.total > 0)) return;
  page.Add(name, fmt::format("{} {:>3.0f} %  {:.0f} of {:.0f}", Bar(use.used / use.total),
                             use.used / use.total * 100, use.used, use.total));
}

void AddTroubles(const Figures& figures, Page& page) {
  if (figures.troubles.empty()) return;
  page.Gap();
  page.Add("trouble", "since the start, and in this window");
  const size_t shown = std::min(figures.troubles.size(), kMostTroubles);
  for (size_t i = 0; i < shown; ++i) {
    const Figures::Trouble& trouble = figures.troubles[i];
    page.AddRaw(
        fmt::format("  {:<36} {:>8.0f}  +{:.0f}", trouble.name, trouble.total, trouble.gained));
  }
  if (shown < figures.troubles.size()) {
    page.AddRaw(fmt::format("  and {} more kinds", figures.troubles.size() - shown));
  }
}

}  // namespace

std::vector<std::string> OverviewLines(const Overview& overview, int columns) {
  const Figures& figures = overview.figures;
  Page page(columns);
  page.AddRaw(fmt::format("banyan {}   {}   {}", overview.address,
                          absl::FormatTime("%H:%M:%S", overview.at, absl::LocalTimeZone()),
                          Health(overview)));
  if (overview.server && overview.server->info) {
    const auto& info = *overview.server->info;
    page.AddRaw(fmt::format("{}, {} layers, {} experts top-{}, backend {}, server {}",
                            info.model_type(), info.num_hidden_layers(), info.num_experts(),
                            info.num_experts_per_tok(), info.backend(), info.server_version()));
  }
  const std::vector<LoadRow> loading = Loading(overview);
  if (!loading.empty()) page.Gap();
  for (const LoadRow& row : loading) page.AddRaw(ProgressView::BarLine(row, columns + 1));
  page.Gap();
  if (figures.has_trunk) {
    AddSpeed(figures, page);
    if (figures.has_window) AddSteps(figures, page);
  } else {
    page.Add("metrics", overview.metrics_problem);
  }
  AddShards(overview, page);
  if (figures.has_trunk) {
    page.Gap();
    AddUse("pages", figures.pages, page);
    AddUse("slots", figures.slots, page);
  }
  AddTroubles(figures, page);
  return page.Take();
}

std::string OverviewLine(const Overview& overview) {
  const Figures& figures = overview.figures;
  std::string line = absl::FormatTime("%Y-%m-%dT%H:%M:%S%Ez", overview.at, absl::LocalTimeZone());
  line += " " + Health(overview);
  if (!figures.has_trunk) return Printable(line + "; " + overview.metrics_problem, 400);
  line += fmt::format("; {:.0f} running, {:.0f} queued", figures.running_requests,
                      figures.queued_requests);
  if (figures.has_window) {
    line += fmt::format("; {:.1f} tokens/s out, {:.1f} in", figures.generated_per_second,
                        figures.prompt_per_second);
    if (figures.ttft.count > 0) line += fmt::format("; TTFT p50 {}", Time(figures.ttft.p50));
    if (figures.itl.count > 0) line += fmt::format("; ITL p50 {}", Time(figures.itl.p50));
    if (figures.step_seconds > 0) {
      line += fmt::format("; step {}:", Time(figures.step_seconds));
      for (const Figures::Share& part : figures.step_split) {
        line += fmt::format(" {} {:.0f} %", part.name, part.share * 100);
      }
    }
  }
  return Printable(line, 400);
}

}  // namespace banyan::client
