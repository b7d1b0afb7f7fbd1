// The figures of `banyan top`, from pages as the services write them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "services/client/connection/metrics_page.h"
#include "services/client/overview/figures.h"
#include "services/client/overview/overview_json.h"
#include "services/client/overview/overview_text.h"

namespace banyan::client {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr double kInf = std::numeric_limits<double>::infinity();

// --- pages ---------------------------------------------------------------------------------------

TEST(MetricsPage, ReadsLabelsHoweverTheyAreWritten) {
  const auto page = MetricsPage::Parse(
      "x{a=\"1\",b=\"q\\\"}\\\\\\n\"} 2\nx{a=\"2\"} 3 1700000000\nx 4\n"
      "bad{a=1} 9\nbad{a=\"1\" 9\nbad{a=\"1\"} nine\n");
  EXPECT_EQ(page.Sum("x"), 9.0);
  EXPECT_EQ(page.Sum("x", {{"a", "2"}}), 3.0);
  EXPECT_EQ(page.Sum("x", {{"a", "1"}, {"b", "q\"}\\\n"}}), 2.0);
  EXPECT_EQ(page.Sum("x", {{"a", "3"}}), std::nullopt);
  EXPECT_EQ(page.Sum("bad"), std::nullopt);
  EXPECT_THAT(page.LabelValues("x", "a"), ElementsAre("1", "2"));
}

TEST(Increase, StartsAnewWhenACounterWentBack) {
  EXPECT_EQ(Increase(10, 25), 15);
  EXPECT_EQ(Increase(10, 4), 4);
}

HistogramReading Reading(double le1, double le2, double all, double sum) {
  return {{{1, le1}, {2, le2}, {kInf, all}}, sum, all};
}

TEST(Quantile, IsInterpolatedWithinItsBucket) {
  // Ten below 1, ten between 1 and 2.
  const HistogramReading histogram = Reading(10, 20, 20, 25);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.25), 0.5);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.5), 1.0);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.75), 1.5);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 1.0), 2.0);
}

TEST(Quantile, AboveTheLastBoundIsThatBound) {
  EXPECT_DOUBLE_EQ(*Quantile(Reading(1, 1, 10, 100), 0.99), 2.0);
}

TEST(Quantile, SkipsEmptyBuckets) {
  EXPECT_DOUBLE_EQ(*Quantile(Reading(0, 4, 4, 6), 0.5), 1.5);
  EXPECT_EQ(Quantile(Reading(0, 0, 0, 0), 0.5), std::nullopt);
  EXPECT_EQ(Quantile({}, 0.5), std::nullopt);
}

TEST(Between, IsWhatWasObservedSince) {
  // Before: everything was slow. In the window everything is fast, and the percentiles say so.
  const HistogramReading window = Between(Reading(0, 100, 100, 150), Reading(50, 150, 150, 175));
  EXPECT_EQ(window.count, 50);
  EXPECT_EQ(window.sum, 25);
  EXPECT_DOUBLE_EQ(*Quantile(window, 0.5), 0.5);
  // A process that has started anew.
  EXPECT_EQ(Between(Reading(0, 100, 100, 150), Reading(3, 3, 3, 1)).count, 3);
}

// --- figures -------------------------------------------------------------------------------------

// A trunk that has run `steps` steps: 10 ms each, of which it waited 6 ms for experts.
std::string TrunkPage(int steps, int resends) {
  std::string page;
  const auto add = [&](const std::string& name, double value) {
    page += name + " " + std::to_string(value) + "\n";
  };
  const auto phase = [&](const std::string& name, double seconds) {
    add("banyan_trunk_step_phase_seconds_total{phase=\"" + name + "\"}", steps * seconds);
  };
  phase("schedule", 0.0002);
  phase("forward", 0.0025);
  phase("experts", 0.006);
  phase("logits", 0.0005);
  phase("sampling", 0.0005);
  phase("publish", 0.0003);
  add("banyan_trunk_steps_total", steps);
  add("banyan_trunk_step_rows_total{kind=\"decode\"}", 2 * steps);
  add("banyan_trunk_step_rows_total{kind=\"prefill\"}", steps);
  add("banyan_trunk_generated_tokens_total", 2 * steps);
  add("banyan_trunk_prompt_tokens_total", steps);
  add("banyan_trunk_calls_total{outcome=\"ok\"}", steps / 10);
  add("banyan_trunk_calls_total{outcome=\"overload\"}", 0);
  add("banyan_trunk_running_requests", 2);
  add("banyan_trunk_queued_requests", 5);
  add("banyan_trunk_kv_pages", 2000);
  add("banyan_trunk_kv_pages_used", 500);
  add("banyan_trunk_recurrent_slots", 32);
  add("banyan_trunk_recurrent_slots_used", 2);
  add("banyan_trunk_expert_resends_total{reason=\"late\",shard=\"0\"}", resends);
  for (const char* shard : {"0", "1"}) {
    for (const auto& [name, seconds] :
         {std::pair("total", 0.0004), std::pair("queue", 0.00005), std::pair("compute", 0.0003),
          std::pair("transport", 5e-5)}) {
      const std::string labels = std::string("phase=\"") + name + "\",shard=\"" + shard + "\"";
      const std::string family = "banyan_trunk_expert_call_seconds";
      add(family + "_bucket{" + labels + ",le=\"0.0002\"}", 0);
      add(family + "_bucket{" + labels + ",le=\"0.0005\"}", 4 * steps);
      add(family + "_bucket{" + labels + ",le=\"+Inf\"}", 4 * steps);
      add(family + "_sum{" + labels + "}", 4 * steps * seconds);
      add(family + "_count{" + labels + "}", 4 * steps);
    }
  }
  for (const char* name : {"banyan_trunk_itl_seconds", "banyan_trunk_ttft_seconds"}) {
    add(std::string(name) + "_bucket{le=\"0.005\"}", 0);
    add(std::string(name) + "_bucket{le=\"0.015\"}", 2 * steps);
    add(std::string(name) + "_bucket{le=\"+Inf\"}", 2 * steps);
    add(std::string(name) + "_sum", 2 * steps * 0.01);
    add(std::string(name) + "_count", 2 * steps);
  }
  return page;
}

std::string ExpertPage(int steps) {
  return "banyan_expert_ready 1\nbanyan_expert_call_compute_seconds_sum " +
         std::to_string(4 * steps * 0.0003) + "\nbanyan_expert_weight_bytes_total " +
         std::to_string(4.0 * steps * 0.0003 * 5e9) +
         "\nbanyan_expert_pool_bytes 1000\nbanyan_expert_loaded_bytes 1000\n";
}

MetricsReading At(double seconds, int steps, int resends = 0) {
  MetricsReading reading;
  reading.at = absl::FromUnixMillis(1700000000000) + absl::Seconds(seconds);
  reading.trunk = MetricsPage::Parse(TrunkPage(steps, resends));
  reading.experts = {MetricsPage::Parse(ExpertPage(steps)), std::nullopt};
  return reading;
}

TEST(Compare, TellsRatesTimesAndShares) {
  const Figures figures = Compare(At(0, 1000, 1), At(4, 1200, 3));
  EXPECT_TRUE(figures.has_window);
  EXPECT_DOUBLE_EQ(figures.window_seconds, 4);
  EXPECT_DOUBLE_EQ(figures.generated_per_second, 100);
  EXPECT_DOUBLE_EQ(figures.prompt_per_second, 50);
  EXPECT_DOUBLE_EQ(figures.ended_per_second, 5);
  EXPECT_EQ(figures.running_requests, 2);
  EXPECT_EQ(figures.queued_requests, 5);
  EXPECT_DOUBLE_EQ(figures.steps_per_second, 50);
  EXPECT_NEAR(figures.step_seconds, 0.010, 1e-9);
  EXPECT_DOUBLE_EQ(figures.rows_per_step, 3);
  EXPECT_NEAR(figures.busy, 0.5, 1e-6);
  ASSERT_EQ(figures.step_split.size(), 4u);
  EXPECT_EQ(figures.step_split[0].name, "trunk");
  EXPECT_NEAR(figures.step_split[0].share, 0.30, 1e-6);
  EXPECT_EQ(figures.step_split[1].name, "experts");
  EXPECT_NEAR(figures.step_split[1].share, 0.60, 1e-6);
  EXPECT_NEAR(figures.step_split[1].seconds_per_step, 0.006, 1e-9);
  EXPECT_NEAR(figures.step_split[2].share, 0.05, 1e-6);
  EXPECT_NEAR(figures.step_split[3].share, 0.05, 1e-6);
  EXPECT_EQ(figures.itl.count, 400);
  EXPECT_NEAR(figures.itl.mean, 0.01, 1e-9);
  EXPECT_NEAR(figures.itl.p50, 0.01, 1e-9);
  EXPECT_EQ(figures.pages.used, 500);
  EXPECT_EQ(figures.slots.total, 32);
}

TEST(Compare, TellsShardsApart) {
  const Figures figures = Compare(At(0, 1000), At(4, 1200));
  ASSERT_EQ(figures.shards.size(), 2u);
  EXPECT_EQ(figures.shards[0].name, "0");
  EXPECT_DOUBLE_EQ(figures.shards[0].calls_per_second, 200);
  EXPECT_NEAR(figures.shards[0].call.p50, 0.00035, 1e-9);
  EXPECT_NEAR(figures.shards[0].queue, 0.00005, 1e-9);
  EXPECT_NEAR(figures.shards[0].compute, 0.0003, 1e-9);
  ASSERT_TRUE(figures.shards[0].weight_bytes_per_second.has_value());
  EXPECT_NEAR(*figures.shards[0].weight_bytes_per_second, 5e9, 1e5);
  EXPECT_FALSE(figures.shards[1].weight_bytes_per_second.has_value()) << "its page is not there";
}

TEST(Compare, NamesWhatWentWrongAndNothingElse) {
  const Figures figures = Compare(At(0, 1000, 1), At(4, 1200, 3));
  ASSERT_EQ(figures.troubles.size(), 1u);
  EXPECT_EQ(figures.troubles[0].name, "expert calls sent again: late");
  EXPECT_EQ(figures.troubles[0].total, 3);
  EXPECT_EQ(figures.troubles[0].gained, 2);
}

TEST(Compare, WithoutAWindowTellsOnlyWhatIsNow) {
  const Figures figures = Compare({}, At(4, 1200, 3));
  EXPECT_TRUE(figures.has_trunk);
  EXPECT_FALSE(figures.has_window);
  EXPECT_EQ(figures.running_requests, 2);
  EXPECT_EQ(figures.generated_per_second, 0);
  EXPECT_EQ(figures.itl.count, 0);
  EXPECT_EQ(figures.troubles[0].gained, 0);
  EXPECT_FALSE(Compare({}, {}).has_trunk);
}

TEST(Compare, ATrunkThatStartedAnewCountsFromZero) {
  const Figures figures = Compare(At(0, 100000), At(4, 200));
  EXPECT_DOUBLE_EQ(figures.generated_per_second, 100);
  EXPECT_EQ(figures.itl.count, 400);
}

// --- what a person sees --------------------------------------------------------------------------

Overview Serving() {
  Overview overview;
  overview.address = "127.0.0.1:50051";
  overview.at = absl::FromUnixSeconds(1700000000);
  overview.server.emplace();
  overview.server->serving = true;
  overview.server->progress.set_phase(common::v1::LoadProgress::READY);
  overview.server->info.emplace().set_model_type("qwen3_next");
  overview.server->shards = {{{"unix:/a", "ready", {}}}, {{"unix:/b", "lost", {}}}};
  overview.figures = Compare(At(0, 1000, 1), At(4, 1200, 3));
  return overview;
}

std::string Joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

TEST(OverviewText, TellsTheStoryFromHealthToTrouble) {
  const std::vector<std::string> lines = OverviewLines(Serving(), 120);
  EXPECT_THAT(lines[0], StartsWith("banyan 127.0.0.1:50051   "));
  EXPECT_THAT(lines[0], HasSubstr("   serving"));
  EXPECT_THAT(lines, Contains("requests  2 running   5 queued   5.0 ended/s"));
  EXPECT_THAT(lines, Contains("tokens    100.0/s out   50.0/s in"));
  EXPECT_THAT(lines, Contains(StartsWith("ITL       p50  10.0 ms   p95")));
  EXPECT_THAT(lines, Contains("step      10.0 ms each, 50.0/s, 3.0 rows; the loop is busy 50 %"));
  EXPECT_THAT(lines, Contains(" experts  [##############----------]  60 %    6.0 ms"));
  EXPECT_THAT(lines, Contains(HasSubstr("1/1 ready")));
  EXPECT_THAT(lines, Contains(HasSubstr("0/1 ready lost")));
  EXPECT_THAT(lines, Contains(HasSubstr("5.0 GB/s")));
  EXPECT_THAT(lines, Contains("pages     [######------------------]  25 %  500 of 2000"));
  EXPECT_THAT(Joined(lines), HasSubstr("expert calls sent again: late"));
}

TEST(OverviewText, FitsAnyWidthAndHoldsNoControlCharacters) {
  Overview overview = Serving();
  overview.server->info->set_model_type("evil\x1b[2J\n\xff");
  overview.server->shards[0][0].state = "lost\x1b]0;title\x07";
  for (const int columns : {1, 20, 79, 80, 200}) {
    for (const std::string& line : OverviewLines(overview, columns)) {
      EXPECT_LE(line.size(), static_cast<size_t>(columns));
      for (const char c : line) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << line;
    }
  }
}

TEST(OverviewText, ShowsHowFarALoadIs) {
  Overview overview;
  overview.address = "127.0.0.1:50051";
  overview.server.emplace();
  overview.server->progress.set_phase(common::v1::LoadProgress::WAIT);
  overview.server->progress.set_detail("shard 1: loading");
  overview.figures.has_trunk = true;
  Figures::Shard& shard = overview.figures.shards.emplace_back();
  shard.name = "1";
  shard.loaded_bytes = 4e9;
  shard.pool_bytes = 8e9;
  const std::string text = Joined(OverviewLines(overview, 100));
  EXPECT_THAT(text, HasSubstr("loading: wait, shard 1: loading"));
  EXPECT_THAT(text,
              HasSubstr("expert 1   read      [############------------]  50 %  4.0 GB of 8.0 GB"));
}

TEST(OverviewText, SaysWhyNothingCanBeSaid) {
  Overview overview;
  overview.problem = absl::UnavailableError("nothing listens on 127.0.0.1:50051");
  overview.metrics_problem = "no metrics at 127.0.0.1:9101: Connection refused";
  const std::string text = Joined(OverviewLines(overview, 100));
  EXPECT_THAT(text, HasSubstr("not reached: nothing listens on 127.0.0.1:50051"));
  EXPECT_THAT(text, HasSubstr("no metrics at 127.0.0.1:9101: Connection refused"));
  EXPECT_THAT(OverviewLine(overview), HasSubstr("; no metrics at 127.0.0.1:9101"));
}

TEST(OverviewText, OneLineForPipes) {
  EXPECT_THAT(OverviewLine(Serving()),
              HasSubstr(" serving; 2 running, 5 queued; 100.0 tokens/s out, 50.0 in; TTFT p50 10.0 "
                        "ms; ITL p50 10.0 ms; step 10.0 ms: trunk 30 % experts 60 % sampling 5 % "
                        "other 5 %"));
}

TEST(OverviewJson, HasTheSameFiguresAndNullsForWhatIsNotThere) {
  const nlohmann::json json = nlohmann::json::parse(OverviewJson(Serving()).dump());
  EXPECT_EQ(json["server"]["serving"], true);
  EXPECT_EQ(json["figures"]["generated_tokens_per_second"], 100);
  EXPECT_NEAR(json["figures"]["step"]["split"]["experts"]["share"].get<double>(), 0.6, 1e-6);
  EXPECT_TRUE(json["figures"]["queue_seconds"].is_null());
  EXPECT_EQ(json["experts"][0]["shard"], "0");
  EXPECT_TRUE(json["experts"][1]["weight_bytes_per_second"].is_null());
  EXPECT_EQ(json["trouble"][0]["gained"], 2);
  Overview unreached;
  unreached.problem = absl::UnavailableError("gone");
  const nlohmann::json none = nlohmann::json::parse(OverviewJson(unreached).dump());
  EXPECT_TRUE(none["server"].is_null());
  EXPECT_EQ(none["problem"], "gone");
  EXPECT_TRUE(none["figures"].is_null());
}

}  // namespace
}  // namespace banyan::client
