#include "common/metrics/openmetrics_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "common/metrics/registry.h"

namespace banyan {
namespace {

using ::testing::HasSubstr;

TEST(OpenMetricsTextTest, EveryKindOfFamily) {
  MetricsRegistry registry;
  registry.Counter("banyan_test_calls_total", "Calls", {{"shard", "1"}}).Increment(1.5);
  EXPECT_EQ(OpenMetricsText(registry.Collect()),
            "# TYPE banyan_test_calls counter\n"
            "# HELP banyan_test_calls Calls\n"
            "banyan_test_calls_total{shard=\"1\"} 1.5\n"
            "# EOF\n");

  MetricsRegistry gauges;
  gauges.Gauge("banyan_test_bytes", "Bytes").Set(3e18);
  EXPECT_EQ(OpenMetricsText(gauges.Collect()),
            "# TYPE banyan_test_bytes gauge\n"
            "# HELP banyan_test_bytes Bytes\n"
            "banyan_test_bytes 3e+18\n"
            "# EOF\n");

  MetricsRegistry histograms;
  auto& histogram = histograms.Histogram("banyan_test_seconds", "Time", {5e-5, 1}, {{"a", "b"}});
  histogram.Observe(0.25);
  histogram.Observe(7);
  EXPECT_EQ(OpenMetricsText(histograms.Collect()),
            "# TYPE banyan_test_seconds histogram\n"
            "# HELP banyan_test_seconds Time\n"
            "banyan_test_seconds_bucket{a=\"b\",le=\"5e-05\"} 0\n"
            "banyan_test_seconds_bucket{a=\"b\",le=\"1.0\"} 1\n"
            "banyan_test_seconds_bucket{a=\"b\",le=\"+Inf\"} 2\n"
            "banyan_test_seconds_count{a=\"b\"} 2\n"
            "banyan_test_seconds_sum{a=\"b\"} 7.25\n"
            "# EOF\n");
}

TEST(OpenMetricsTextTest, EscapesLabelsAndHelp) {
  MetricsRegistry registry;
  registry.Gauge("banyan_test", "A \"b\"\\\n", {{"path", "c:\\\n\""}}).Set(-1);
  const std::string text = OpenMetricsText(registry.Collect());
  EXPECT_THAT(text, HasSubstr("# HELP banyan_test A \\\"b\\\"\\\\\\n\n"));
  EXPECT_THAT(text, HasSubstr("banyan_test{path=\"c:\\\\\\n\\\"\"} -1.0\n"));
}

TEST(OpenMetricsTextTest, NumbersThatAreNone) {
  MetricsRegistry registry;
  auto& gauge = registry.Gauge("banyan_test", "Test");
  const auto text = [&](double value) {
    gauge.Set(value);
    return OpenMetricsText(registry.Collect());
  };
  EXPECT_THAT(text(std::numeric_limits<double>::infinity()), HasSubstr("\nbanyan_test +Inf\n"));
  EXPECT_THAT(text(-std::numeric_limits<double>::infinity()), HasSubstr("\nbanyan_test -Inf\n"));
  EXPECT_THAT(text(std::numeric_limits<double>::quiet_NaN()), HasSubstr("\nbanyan_test NaN\n"));
}

TEST(OpenMetricsTextDeathTest, CounterWithoutTotalIsOurBug) {
  MetricsRegistry registry;
  registry.Counter("banyan_test_calls", "Calls");
  EXPECT_DEATH(OpenMetricsText(registry.Collect()), "CHECK failed");
}

}  // namespace
}  // namespace banyan
