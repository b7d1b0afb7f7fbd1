// What metrics cost in tokens per second: the real trunk with two real expert hosts in one process,
// decoding, with every metric's updates switched on and off in turn, and the same from the number
// of updates and the time of one.
//   metrics_cost_bench [--seconds S] [--model DIR]
// What stays in both runs is the reading of clocks: a few a step and three a call of an expert,
// some 25 ns each; answers carry most of those times, so they would be read without metrics too.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/stop_signals.h"
#include "common/metrics/http_exposer.h"
#include "common/rpc/channel_settings.h"
#include "services/expert/server/expert_server.h"
#include "services/trunk/server/loaded_trunk.h"
#include "tests/benchmark/metrics/metrics_switch.h"

namespace banyan {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kStepsPerSlice = 16;
constexpr int kSlicesPerRequest = 16;
constexpr int kPromptTokens = 16;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// An expert host and its thread.
class Expert {
 public:
  Expert(const std::string& model_dir, int shard) {
    expert::ExpertOptions options;
    options.model_dir = model_dir;
    options.listen = "127.0.0.1:0";
    options.metrics_listen = "";
    options.shard = {.index = shard, .num_shards = 2, .split = ShardSplit::kWidth};
    options.num_threads = 1;
    auto server = expert::ExpertServer::Create(options);
    CHECK(server.ok());
    server_ = *std::move(server);
    thread_ = std::thread([this] { CHECK(server_->Run(stop_).ok()); });
  }
  ~Expert() {
    stop_.Notify();
    thread_.join();
  }
  const std::string& address() const { return server_->address(); }

 private:
  StopSignals stop_;
  std::unique_ptr<expert::ExpertServer> server_;
  std::thread thread_;
};

// Seconds of the slices of one request; the one who leads a batch also turns the switch.
class Listener final : public trunk::RequestListener {
 public:
  // `first_on`: slices go on, off, off, on; else off, on, on, off. nullopt: all are on.
  Listener(absl::BlockingCounter* done, bool leads, std::optional<bool> first_on)
      : done_(done), leads_(leads), first_on_(first_on) {}

  void OnStarted(std::vector<trunk::TokenLogprobs> /*prompt_logprobs*/) override {}
  bool OnToken(int32_t /*token_id*/, bool /*is_stop_token*/,
               const trunk::TokenLogprobs* /*logprobs*/) override {
    // Between two steps: the first token ends the prompt's.
    if (leads_ && num_tokens_++ % kStepsPerSlice == 0) {
      const Clock::time_point now = Clock::now();
      if (num_tokens_ > 1) seconds_.push_back(std::chrono::duration<double>(now - begin_).count());
      const size_t place = seconds_.size() % 4;
      if (first_on_.has_value()) {
        metrics_switch::Set((place == 0 || place == 3) == *first_on_);
      }
      begin_ = Clock::now();
    }
    return false;
  }
  void OnFinished(const trunk::FinishInfo& info) override {
    CHECK(info.status.ok());
    done_->DecrementCount();
  }
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  absl::BlockingCounter* const done_;
  const bool leads_;
  const std::optional<bool> first_on_;
  int num_tokens_ = 0;
  Clock::time_point begin_;
  std::vector<double> seconds_;
};

// Decodes `num_sequences` side by side, once; seconds of the slices. Metrics are on at the end, and
// all the time for nullopt.
std::vector<double> Decode(trunk::Engine* engine, int num_sequences, std::optional<bool> first_on) {
  absl::BlockingCounter done(num_sequences);
  std::vector<std::shared_ptr<Listener>> listeners;
  for (int i = 0; i < num_sequences; ++i) {
    trunk::Request request;
    request.request_id = "bench";
    for (int t = 0; t < kPromptTokens; ++t) request.prompt_ids.push_back(10 + 7 * i + t);
    request.sampling.temperature = 0;
    request.max_new_tokens = kStepsPerSlice * kSlicesPerRequest + 1;
    // The last one leads: all of them decode when it does.
    listeners.push_back(std::make_shared<Listener>(&done, i + 1 == num_sequences, first_on));
    CHECK(engine->Submit(std::move(request), listeners.back()).ok());
  }
  done.Wait();
  if (first_on.has_value()) metrics_switch::Set(true);
  return listeners.back()->seconds();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// 2.5 % and 97.5 % of the medians of samples drawn from `values`.
std::pair<double, double> MedianInterval(const std::vector<double>& values) {
  std::mt19937_64 random(1);
  std::vector<double> medians;
  std::vector<double> sample(values.size());
  for (int i = 0; i < 1000; ++i) {
    for (double& value : sample) value = values[random() % values.size()];
    medians.push_back(Median(sample));
  }
  std::sort(medians.begin(), medians.end());
  return {medians[25], medians[974]};
}

// Nanoseconds of one update. Its metric is in the cache and nobody else's: the least it takes.
template <typename Update>
double Nanoseconds(Update update) {
  constexpr int kUpdates = 1'000'000;
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kUpdates; ++i) update(i);
    best = std::min(best, Since(start) * 1e9 / kUpdates);
  }
  return best;
}

// Nanoseconds of one update of each kind.
struct Costs {
  double counter = 0;
  double gauge = 0;
  double histogram = 0;
  double hot_counter = 0;
  double hot_histogram = 0;
};

void Report(trunk::Engine* engine, int num_sequences, double seconds, const Costs& ns) {
  Decode(engine, num_sequences, std::nullopt);  // warms up
  metrics_switch::StartCounting();
  Decode(engine, num_sequences, std::nullopt);
  const metrics_switch::Updates updates = metrics_switch::StopCounting();

  // Requests in turn begin with metrics on and off: a request's first slices are its slowest.
  std::vector<double> on, off, ratios;
  bool first_on = false;
  for (const Clock::time_point start = Clock::now(); Since(start) < seconds;) {
    first_on = !first_on;
    const std::vector<double> slices = Decode(engine, num_sequences, first_on);
    CHECK(slices.size() == kSlicesPerRequest);
    std::vector<double>& outer = first_on ? on : off;
    std::vector<double>& inner = first_on ? off : on;
    for (size_t i = 0; i < slices.size(); i += 4) {
      outer.insert(outer.end(), {slices[i], slices[i + 3]});
      inner.insert(inner.end(), {slices[i + 1], slices[i + 2]});
      // Tokens per second with metrics over those without.
      const double ratio = (slices[i + 1] + slices[i + 2]) / (slices[i] + slices[i + 3]);
      ratios.push_back(first_on ? ratio : 1 / ratio);
    }
  }
  const double tokens = static_cast<double>(num_sequences) * kStepsPerSlice;
  const auto [low, high] = MedianInterval(ratios);
  std::sort(ratios.begin(), ratios.end());
  std::printf(
      "%d sequences: %.1f tokens/s with metrics, %.1f without (medians of %zu slices each)\n",
      num_sequences, tokens / Median(on), tokens / Median(off), on.size());
  std::printf(
      "  with / without: %.4f, 95 %% interval %.4f to %.4f; quartiles of pairs %.4f, %.4f\n",
      Median(ratios), low, high, ratios[ratios.size() / 4], ratios[ratios.size() * 3 / 4]);
  const double steps =
      kSlicesPerRequest * kStepsPerSlice;  // the prompts' few are counted as theirs
  const double step_us = Median(off) * 1e6 / kStepsPerSlice;
  const double cost_us = (static_cast<double>(updates.counters) * ns.counter +
                          static_cast<double>(updates.gauges) * ns.gauge +
                          static_cast<double>(updates.histograms) * ns.histogram +
                          static_cast<double>(updates.hot_counters) * ns.hot_counter +
                          static_cast<double>(updates.hot_histograms) * ns.hot_histogram) /
                         steps * 1e-3;
  std::printf(
      "  updates a step: %.1f counters, %.1f gauges, %.1f histograms, %.1f hot counters, %.1f hot "
      "histograms = %.2f us of %.0f us: %.3f %%\n",
      static_cast<double>(updates.counters) / steps, static_cast<double>(updates.gauges) / steps,
      static_cast<double>(updates.histograms) / steps,
      static_cast<double>(updates.hot_counters) / steps,
      static_cast<double>(updates.hot_histograms) / steps, cost_us, step_us,
      100 * cost_us / step_us);
}

int Main(int argc, char** argv) {
  std::string model_dir = BANYAN_SOURCE_DIR "/deploy/models/demo";
  double seconds = 20;
  CLI::App app("What metrics cost in tokens per second");
  app.add_option("--model", model_dir, "Checkpoint");
  app.add_option("--seconds", seconds, "For each number of sequences")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);

  CHECK(SetLogLevel("error").ok());
  Expert experts[] = {{model_dir, 0}, {model_dir, 1}};
  trunk::TrunkOptions options;
  options.model_dir = model_dir;
  options.num_threads = 1;
  for (const Expert& expert : experts) options.cluster.shards.push_back({{expert.address()}});
  MetricsRegistry registry;
  LoadTracker tracker;
  auto loaded = trunk::LoadedTrunk::Load(
      options, [] { return false; }, [](const absl::Status&) {}, &tracker, &registry);
  CHECK(loaded.ok());

  MetricsRegistry tried;
  auto& counter = tried.Counter("banyan_bench_total", "Tried");
  auto& gauge = tried.Gauge("banyan_bench_rows", "Tried");
  auto& histogram = tried.Histogram("banyan_bench_seconds", "Tried", LatencyBuckets());
  auto& hot_counter = tried.HotCounter("banyan_bench_hot_total", "Tried");
  auto& hot_histogram = tried.HotHistogram("banyan_bench_hot_seconds", "Tried", LatencyBuckets());
  Costs ns;
  ns.counter = Nanoseconds([&](int) { counter.Increment(3); });
  ns.gauge = Nanoseconds([&](int i) { gauge.Set(i); });
  ns.histogram = Nanoseconds([&](int i) { histogram.Observe(1e-6 * (i % 65536)); });
  ns.hot_counter = Nanoseconds([&](int) { hot_counter.Increment(3); });
  ns.hot_histogram = Nanoseconds([&](int i) { hot_histogram.Observe(1e-6 * (i % 65536)); });
  std::printf(
      "one update: counter %.1f ns, gauge %.1f ns, histogram %.1f ns, hot counter %.1f ns, hot "
      "histogram %.1f ns\n",
      ns.counter, ns.gauge, ns.histogram, ns.hot_counter, ns.hot_histogram);

  auto exposer = HttpExposer::Create("127.0.0.1:0", "metrics_cost_bench", &registry);
  CHECK(exposer.ok());
  constexpr int kScrapes = 50;
  const Clock::time_point start = Clock::now();
  size_t bytes = 0;
  for (int i = 0; i < kScrapes; ++i) {
    bytes = (*exposer)->Render(HttpExposer::Format::kOpenMetrics).size();
  }
  std::printf("one scrape of the trunk: %.2f ms for %zu bytes, on a thread of its own\n",
              Since(start) * 1e3 / kScrapes, bytes);

  for (const int num_sequences : {1, 8}) {
    Report((*loaded)->model().engine, num_sequences, seconds, ns);
  }
  (*loaded)->model().engine->Drain(absl::InfiniteFuture());
  return 0;
}

}  // namespace
}  // namespace banyan

int main(int argc, char** argv) {
  banyan::PrepareGrpcProcess();
  return banyan::Main(argc, argv);
}
