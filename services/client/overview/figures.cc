#include "services/client/overview/figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace banyan::client {
namespace {

// One service's page now and, where there is a window, before.
class Pair {
 public:
  Pair(const MetricsPage* before, const MetricsPage* now) : before_(before), now_(now) {}

  double Now(const std::string& name, const LabelFilter& filter = {}) const {
    return now_->Sum(name, filter).value_or(0);
  }
  double Gain(const std::string& name, const LabelFilter& filter = {}) const {
    if (before_ == nullptr) return 0;
    return Increase(before_->Sum(name, filter).value_or(0), Now(name, filter));
  }
  Percentiles Times(const std::string& name, const LabelFilter& filter = {}) const {
    Percentiles out;
    if (before_ == nullptr) return out;
    const HistogramReading window =
        Between(before_->Histogram(name, filter), now_->Histogram(name, filter));
    out.count = window.count;
    if (!(window.count > 0)) return out;
    out.mean = window.sum / window.count;
    out.p50 = Quantile(window, 0.50).value_or(0);
    out.p95 = Quantile(window, 0.95).value_or(0);
    out.p99 = Quantile(window, 0.99).value_or(0);
    return out;
  }
  const MetricsPage& page() const { return *now_; }

 private:
  const MetricsPage* before_;
  const MetricsPage* now_;
};

double Ratio(double value, double by) { return by > 0 ? value / by : 0; }

void AddStepSplit(const Pair& trunk, Figures& out) {
  const auto phases = [&](std::initializer_list<const char*> names) {
    double seconds = 0;
    for (const char* name : names) {
      seconds += trunk.Gain("banyan_trunk_step_phase_seconds_total", {{"phase", name}});
    }
    return seconds;
  };
  const double steps = trunk.Gain("banyan_trunk_steps_total");
  const std::pair<const char*, double> parts[] = {{"trunk", phases({"forward", "logits"})},
                                                  {"experts", phases({"experts"})},
                                                  {"sampling", phases({"sampling"})},
                                                  {"other", phases({"schedule", "publish"})}};
  double all = 0;
  for (const auto& [name, seconds] : parts) all += seconds;
  for (const auto& [name, seconds] : parts) {
    out.step_split.push_back({name, Ratio(seconds, steps), Ratio(seconds, all)});
  }
  out.step_seconds = Ratio(all, steps);
  out.rows_per_step = Ratio(trunk.Gain("banyan_trunk_step_rows_total"), steps);
  out.steps_per_second = Ratio(steps, out.window_seconds);
  out.busy = std::min(1.0, Ratio(all, out.window_seconds));
}

void AddShards(const Pair& trunk, Figures& out) {
  constexpr char kCalls[] = "banyan_trunk_expert_call_seconds";
  for (std::string& name : trunk.page().LabelValues(std::string(kCalls) + "_count", "shard")) {
    Figures::Shard shard;
    const auto phase = [&](const char* which) {
      return trunk.Times(kCalls, {{"shard", name}, {"phase", which}});
    };
    shard.call = phase("total");
    shard.queue = phase("queue").mean;
    shard.compute = phase("compute").mean;
    shard.transport = phase("transport").mean;
    shard.calls_per_second = Ratio(shard.call.count, out.window_seconds);
    shard.name = std::move(name);
    out.shards.push_back(std::move(shard));
  }
}

void AddExpert(const Pair& expert, Figures::Shard& shard, std::vector<Figures::Trouble>& troubles) {
  const double seconds = expert.Gain("banyan_expert_call_compute_seconds_sum");
  const double bytes = expert.Gain("banyan_expert_weight_bytes_total");
  if (seconds > 0) shard.weight_bytes_per_second = bytes / seconds;
  shard.loaded_bytes = expert.page().Sum("banyan_expert_loaded_bytes");
  shard.pool_bytes = expert.page().Sum("banyan_expert_pool_bytes");
  for (const auto& [family, words] :
       {std::pair("banyan_expert_call_errors_total", "calls refused"),
        std::pair("banyan_expert_frames_refused_total", "frames refused")}) {
    const double total = expert.Now(family);
    if (total > 0) {
      troubles.push_back(
          {fmt::format("expert {}: {}", shard.name, words), total, expert.Gain(family)});
    }
  }
}

void AddTroubles(const Pair& trunk, std::vector<Figures::Trouble>& troubles) {
  // Families that count nothing but trouble; a label tells its kinds apart.
  struct Kind {
    const char* family;
    const char* label;  // nullptr: none
    const char* words;
  };
  constexpr Kind kKinds[] = {
      {"banyan_trunk_calls_total", "outcome", "requests"},
      {"banyan_trunk_failed_steps_total", nullptr, "failed steps"},
      {"banyan_trunk_shard_losses_total", nullptr, "shards lost"},
      {"banyan_trunk_expert_stream_losses_total", nullptr, "expert streams lost"},
      {"banyan_trunk_expert_call_failures_total", nullptr, "expert calls unanswered"},
      {"banyan_trunk_expert_resends_total", "reason", "expert calls sent again"},
      {"banyan_trunk_preemptions_total", "reason", "sequences preempted"}};
  for (const Kind& kind : kKinds) {
    std::vector<std::string> values = {""};
    if (kind.label != nullptr) values = trunk.page().LabelValues(kind.family, kind.label);
    for (const std::string& value : values) {
      if (value == "ok") continue;
      const LabelFilter filter =
          kind.label == nullptr ? LabelFilter{} : LabelFilter{{kind.label, value}};
      const double total = trunk.Now(kind.family, filter);
      if (!(total > 0)) continue;
      troubles.push_back({value.empty() ? kind.words : fmt::format("{}: {}", kind.words, value),
                          total, trunk.Gain(kind.family, filter)});
    }
  }
}

const MetricsPage* Get(const std::optional<MetricsPage>& page) { return page ? &*page : nullptr; }

}  // namespace

Figures Compare(const MetricsReading& before, const MetricsReading& now) {
  Figures out;
  out.has_trunk = now.trunk.has_value();
  if (out.has_trunk) {
    const Pair trunk(Get(before.trunk), &*now.trunk);
    out.has_window = before.trunk.has_value() && now.at > before.at;
    if (out.has_window) out.window_seconds = absl::ToDoubleSeconds(now.at - before.at);
    out.running_requests = trunk.Now("banyan_trunk_running_requests");
    out.queued_requests = trunk.Now("banyan_trunk_queued_requests");
    out.pages = {trunk.Now("banyan_trunk_kv_pages_used"), trunk.Now("banyan_trunk_kv_pages")};
    out.slots = {trunk.Now("banyan_trunk_recurrent_slots_used"),
                 trunk.Now("banyan_trunk_recurrent_slots")};
    out.ended_per_second = Ratio(trunk.Gain("banyan_trunk_calls_total"), out.window_seconds);
    out.generated_per_second =
        Ratio(trunk.Gain("banyan_trunk_generated_tokens_total"), out.window_seconds);
    out.prompt_per_second =
        Ratio(trunk.Gain("banyan_trunk_prompt_tokens_total"), out.window_seconds);
    out.ttft = trunk.Times("banyan_trunk_ttft_seconds");
    out.itl = trunk.Times("banyan_trunk_itl_seconds");
    out.queue = trunk.Times("banyan_trunk_queue_seconds");
    AddStepSplit(trunk, out);
    AddShards(trunk, out);
    AddTroubles(trunk, out.troubles);
  }
  for (size_t i = 0; i < now.experts.size(); ++i) {
    const std::string name = std::to_string(i);
    auto shard = std::find_if(out.shards.begin(), out.shards.end(),
                              [&](const Figures::Shard& s) { return s.name == name; });
    if (!now.experts[i].has_value()) continue;
    if (shard == out.shards.end()) {
      out.shards.emplace_back().name = name;
      shard = std::prev(out.shards.end());
    }
    const MetricsPage* old = i < before.experts.size() ? Get(before.experts[i]) : nullptr;
    AddExpert(Pair(old, &*now.experts[i]), *shard, out.troubles);
  }
  return out;
}

}  // namespace banyan::client
