#include "common/rpc/load_phase_gauge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "common/rpc/load_tracker.h"

namespace banyan {
namespace {

using common::v1::LoadProgress;
using ::testing::ElementsAre;
using ::testing::Pair;

// Phases whose series of a family is not 0.
std::map<std::string, double> Set(const MetricsRegistry& registry,
                                  const std::string& name = "banyan_test_load_phase") {
  std::map<std::string, double> set;
  for (const auto& family : registry.registry()->Collect()) {
    EXPECT_EQ(family.metric.size(), 9u);
    if (family.name != name) continue;
    for (const auto& metric : family.metric) {
      if (metric.gauge.value != 0) set[metric.label[0].value] = metric.gauge.value;
    }
  }
  return set;
}

TEST(LoadPhaseGaugeTest, FollowsTheTracker) {
  MetricsRegistry registry;
  LoadPhaseGauge gauge("test", &registry);
  LoadTracker tracker([&gauge](LoadProgress::Phase phase) { gauge.Set(phase); },
                      [&gauge](LoadProgress::Phase phase, uint64_t done, uint64_t total) {
                        gauge.SetBytes(phase, done, total);
                      });
  EXPECT_TRUE(Set(registry).empty());
  tracker.SetPhase(LoadProgress::HEADERS, "a directory");
  EXPECT_THAT(Set(registry), ElementsAre(Pair("headers", 1)));
  tracker.SetPhase(LoadProgress::WAIT, "shard 0");
  tracker.SetPhase(LoadProgress::WAIT, "shard 1");
  EXPECT_THAT(Set(registry), ElementsAre(Pair("wait", 1)));
  tracker.SetPhase(LoadProgress::CONVERT);
  tracker.SetBytes(30, 100);
  tracker.SetPhase(LoadProgress::READ);
  tracker.SetBytes(7, 50);
  tracker.SetPhase(LoadProgress::READY);
  EXPECT_THAT(Set(registry), ElementsAre(Pair("ready", 1)));
  // A phase that is over keeps its bytes.
  EXPECT_THAT(Set(registry, "banyan_test_load_phase_bytes"),
              ElementsAre(Pair("convert", 30), Pair("read", 7)));
  EXPECT_THAT(Set(registry, "banyan_test_load_phase_expected_bytes"),
              ElementsAre(Pair("convert", 100), Pair("read", 50)));
}

}  // namespace
}  // namespace banyan
