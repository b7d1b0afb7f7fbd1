#include "common/metrics/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

namespace banyan {
namespace {

using ::testing::HasSubstr;

std::string Text(const MetricsRegistry& registry) {
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

TEST(MetricsRegistryTest, SameNameAndLabelsIsTheSameMetric) {
  MetricsRegistry registry;
  auto& first = registry.Counter("banyan_test_calls_total", "Calls", {{"shard", "0"}});
  auto& again = registry.Counter("banyan_test_calls_total", "Calls", {{"shard", "0"}});
  auto& other = registry.Counter("banyan_test_calls_total", "Calls", {{"shard", "1"}});
  EXPECT_EQ(&first, &again);
  EXPECT_NE(&first, &other);
  first.Increment(2);
  EXPECT_THAT(Text(registry), HasSubstr("# HELP banyan_test_calls_total Calls\n"
                                        "# TYPE banyan_test_calls_total counter\n"));
  EXPECT_THAT(Text(registry), HasSubstr("banyan_test_calls_total{shard=\"0\"} 2\n"));
  EXPECT_THAT(Text(registry), HasSubstr("banyan_test_calls_total{shard=\"1\"} 0\n"));
}

TEST(MetricsRegistryTest, HistogramBucketsAreCumulativeAndClosedAbove) {
  MetricsRegistry registry;
  auto& histogram = registry.Histogram("banyan_test_seconds", "Time", {0.5, 2});
  for (const double value : {0.1, 0.5, 1.0, 7.0}) histogram.Observe(value);
  const std::string text = Text(registry);
  EXPECT_THAT(text, HasSubstr("banyan_test_seconds_bucket{le=\"0.5\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("banyan_test_seconds_bucket{le=\"2\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("banyan_test_seconds_bucket{le=\"+Inf\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("banyan_test_seconds_count 4\n"));
}

TEST(MetricsRegistryTest, HotMetricsReadAsTheOthersDo) {
  MetricsRegistry registry;
  const std::vector<double> bounds = {0.5, 2};
  auto& calls = registry.HotCounter("banyan_test_calls_total", "Calls", {{"shard", "0"}});
  auto& other = registry.HotCounter("banyan_test_calls_total", "Calls", {{"shard", "1"}});
  auto& seconds = registry.HotHistogram("banyan_test_seconds", "Time", bounds);
  EXPECT_EQ(&calls, &registry.HotCounter("banyan_test_calls_total", "Calls", {{"shard", "0"}}));
  EXPECT_NE(&calls, &other);
  EXPECT_EQ(&seconds, &registry.HotHistogram("banyan_test_seconds", "Time", bounds));
  calls.Increment();
  calls.Increment(2.5);
  EXPECT_EQ(calls.Value(), 3.5);
  EXPECT_THAT(Text(registry), HasSubstr("# TYPE banyan_test_calls_total counter\n"
                                        "banyan_test_calls_total{shard=\"0\"} 3.5\n"
                                        "banyan_test_calls_total{shard=\"1\"} 0\n"));
  MetricsRegistry plain;
  auto& expected = plain.Histogram("banyan_test_seconds", "Time", bounds);
  for (const double value : {0.1, 0.5, 1.0, 2.0, 2.5, 7.0}) {
    seconds.Observe(value);
    expected.Observe(value);
  }
  EXPECT_THAT(Text(registry), HasSubstr(Text(plain)));
}

TEST(MetricsRegistryTest, FamiliesOfAllKindsComeSorted) {
  MetricsRegistry registry;
  registry.HotHistogram("banyan_test_c_seconds", "Time", {1});
  registry.Gauge("banyan_test_b", "Rows");
  registry.HotCounter("banyan_test_a_total", "Calls");
  std::vector<std::string> names;
  for (const auto& family : registry.Collect()) names.push_back(family.name);
  EXPECT_THAT(names, ::testing::ElementsAre("banyan_test_a_total", "banyan_test_b",
                                            "banyan_test_c_seconds"));
}

TEST(MetricsRegistryTest, UpdatesComeBeforeTheValues) {
  MetricsRegistry registry;
  auto& reads = registry.Gauge("banyan_test_reads", "Reads");
  registry.BeforeCollect([&reads] { reads.Increment(); });
  EXPECT_THAT(Text(registry), HasSubstr("banyan_test_reads 1\n"));
  EXPECT_THAT(Text(registry), HasSubstr("banyan_test_reads 2\n"));
}

TEST(MetricsRegistryTest, LatencyBucketsReachFrom50MicrosecondsTo100Seconds) {
  const std::vector<double>& bounds = LatencyBuckets();
  EXPECT_DOUBLE_EQ(bounds.front(), 50e-6);
  EXPECT_DOUBLE_EQ(bounds.back(), 100);
  EXPECT_TRUE(std::is_sorted(bounds.begin(), bounds.end()));
}

TEST(MetricsRegistryDeathTest, ContradictoryDeclarationsAreOurBug) {
  MetricsRegistry registry;
  registry.Counter("banyan_test_total", "Help");
  registry.Histogram("banyan_test_seconds", "Time", {1, 2});
  registry.Gauge("banyan_test_rows", "Rows", {{"shard", "0"}});
  EXPECT_DEATH(registry.Gauge("banyan_test_rows", "Rows"), "CHECK failed");
  EXPECT_DEATH(registry.Gauge("banyan_test_rows", "Rows", {{"host", "0"}}), "CHECK failed");
  EXPECT_DEATH(registry.Gauge("banyan_test_total", "Help"), "CHECK failed");
  EXPECT_DEATH(registry.Counter("banyan_test_total", "Other help"), "CHECK failed");
  EXPECT_DEATH(registry.Histogram("banyan_test_seconds", "Time", {1, 3}), "CHECK failed");
  EXPECT_DEATH(registry.Histogram("banyan_test_2", "Time", {2, 1}), "CHECK failed");
  EXPECT_DEATH(registry.Gauge("banyan_test", "Clashes with banyan_test_total"), "CHECK failed");
  EXPECT_DEATH(registry.Counter("banyan_test_rows_total", "Clashes"), "CHECK failed");
  EXPECT_DEATH(registry.HotCounter("banyan_test_total", "Help"), "CHECK failed");
  EXPECT_DEATH(registry.HotHistogram("banyan_test_seconds", "Time", {1, 2}), "CHECK failed");
  EXPECT_DEATH(registry.Counter("banyan test", "Help"), "CHECK failed");
  EXPECT_DEATH(registry.Counter("banyan_test_3", "Help", {{"le gend", "x"}}), "CHECK failed");
}

}  // namespace
}  // namespace banyan
