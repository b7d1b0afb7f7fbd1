#include "common/plan/prompt_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "common/base/strings.h"

namespace banyan {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr PoolFormat kFormats[] = {PoolFormat::kBF16, PoolFormat::kInt8, PoolFormat::kNF4,
                                   PoolFormat::kInt4};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Where nothing is in the way.
constexpr PromptExpertFacts kSuited = {.on_gpu = true,
                                       .tensor_parallel = 1,
                                       .in_memory = true,
                                       .bf16_rows = true,
                                       .halves_asked = false};

// What is in the way, alone, and how it is named.
struct Obstacle {
  std::string named;
  PromptExpertFacts facts;
};

std::vector<Obstacle> Obstacles() {
  std::vector<Obstacle> out(4, {"", kSuited});
  out[0].named = "not with --tensor_parallel 2";
  out[0].facts.tensor_parallel = 2;
  out[1].named = "every expert must be at a unix: address, with --expert_transport auto";
  out[1].facts.in_memory = false;
  out[2].named = "not with --expert_activations f32";
  out[2].facts.bf16_rows = false;
  out[3].named = "not with steps that run as halves";
  out[3].facts.halves_asked = true;
  return out;
}

TEST(ParsePromptExpertsTest, AutoIsOurChoiceWhereNothingIsInTheWay) {
  const auto chosen = [](const PromptExpertFacts& facts) {
    const auto share = ParsePromptExperts("auto", facts);
    EXPECT_TRUE(share.ok()) << share.status();
    EXPECT_EQ(share->percent, 0);
    EXPECT_EQ(share->any(), share->chosen);
    return share->chosen;
  };
  EXPECT_TRUE(chosen(kSuited));
  PromptExpertFacts on_cpu = kSuited;
  on_cpu.on_gpu = false;
  EXPECT_FALSE(chosen(on_cpu));
  for (const Obstacle& obstacle : Obstacles())
    EXPECT_FALSE(chosen(obstacle.facts)) << obstacle.named;
}

TEST(ParsePromptExpertsTest, OffIsNoneWhateverThereIs) {
  for (const PromptExpertFacts& facts : {kSuited, PromptExpertFacts()}) {
    const auto share = ParsePromptExperts("off", facts);
    ASSERT_TRUE(share.ok()) << share.status();
    EXPECT_FALSE(share->any());
  }
}

TEST(ParsePromptExpertsTest, APercentIsTakenOnEitherDevice) {
  for (const bool on_gpu : {false, true}) {
    PromptExpertFacts facts = kSuited;
    facts.on_gpu = on_gpu;
    for (const int32_t percent : {1, 50, 100}) {
      const auto share = ParsePromptExperts(std::to_string(percent), facts);
      ASSERT_TRUE(share.ok()) << share.status();
      EXPECT_EQ(share->percent, percent);
      EXPECT_FALSE(share->chosen);
      EXPECT_TRUE(share->any());
    }
  }
}

TEST(ParsePromptExpertsTest, APercentNamesWhatItCannotGoWith) {
  for (const Obstacle& obstacle : Obstacles()) {
    const absl::Status status = ParsePromptExperts("30", obstacle.facts).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(StartsWith("--prompt_experts 30: "), HasSubstr(obstacle.named)));
  }
}

TEST(ParsePromptExpertsTest, EverythingElseIsRefused) {
  for (const std::string text :
       {"", "0", "-1", "101", "50%", "12x", " 7", "+7", "1.5", "on", "Auto", "99999999999", "\n"}) {
    const absl::Status status = ParsePromptExperts(text, kSuited).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(std::string(status.message()),
              fmt::format("--prompt_experts '{}': expected auto, off or 1 to 100 percent",
                          Printable(text)));
  }
}

TEST(PromptExpertsOfTest, ClassesBeginAtTheirLengths) {
  constexpr PromptExpertCounts kCounts = {3, 5, 7, 11};
  const auto of = [&](int32_t tokens) { return PromptExpertsOf(kCounts, tokens, 512); };
  EXPECT_EQ(of(0), 0);
  EXPECT_EQ(of(511), 0);
  EXPECT_EQ(of(512), 3);
  EXPECT_EQ(of(1023), 3);
  EXPECT_EQ(of(1024), 5);
  EXPECT_EQ(of(2047), 5);
  EXPECT_EQ(of(2048), 7);
  EXPECT_EQ(of(4095), 7);
  EXPECT_EQ(of(4096), 11);
  EXPECT_EQ(of(std::numeric_limits<int32_t>::max()), 11);
}

// Shorter ones than the first class belong to it; a later start leaves the classes where they are.
TEST(PromptExpertsOfTest, LongIsWhatTheFlagSays) {
  constexpr PromptExpertCounts kCounts = {3, 5, 7, 11};
  EXPECT_EQ(PromptExpertsOf(kCounts, 1, 1), 3);
  EXPECT_EQ(PromptExpertsOf(kCounts, 511, 1), 3);
  EXPECT_EQ(PromptExpertsOf(kCounts, 1024, 1), 5);
  EXPECT_EQ(PromptExpertsOf(kCounts, 1999, 2000), 0);
  EXPECT_EQ(PromptExpertsOf(kCounts, 2000, 2000), 5);
  EXPECT_EQ(PromptExpertsOf(kCounts, 9999, 10000), 0);
  EXPECT_EQ(PromptExpertsOf(kCounts, 10000, 10000), 11);
  // Generated tokens are of no prompt.
  EXPECT_EQ(PromptExpertsOf(kCounts, 0, 0), 0);
}

TEST(GivenPromptExpertsTest, AsManyForEveryLength) {
  EXPECT_THAT(GivenPromptExperts(512, 50), Each(256));
  EXPECT_THAT(GivenPromptExperts(512, 100), Each(512));
  EXPECT_THAT(GivenPromptExperts(64, 33), Each(21));
  EXPECT_THAT(GivenPromptExperts(16, 1), Each(1));
}

TEST(ChosenPromptExpertsTest, MoreForLongerPrompts) {
  for (const PoolFormat format : kFormats) {
    for (const double gbps : {6.0, 12.0, 25.0, 50.0}) {
      const PromptExpertCounts counts = ChosenPromptExperts(512, format, gbps * 1e9);
      EXPECT_TRUE(std::is_sorted(counts.begin(), counts.end()));
      EXPECT_GT(counts.front(), 0);
      EXPECT_LT(counts.front(), counts.back());
      EXPECT_LT(counts.back(), 512);
    }
  }
}

TEST(ChosenPromptExpertsTest, FewerForSlowerLinks) {
  for (const PoolFormat format : kFormats) {
    PromptExpertCounts faster = ChosenPromptExperts(512, format, kInfinity);
    for (const double gbps : {25.0, 12.5, 6.25}) {
      const PromptExpertCounts slower = ChosenPromptExperts(512, format, gbps * 1e9);
      for (size_t i = 0; i < slower.size(); ++i) EXPECT_LT(slower[i], faster[i]) << gbps;
      faster = slower;
    }
  }
}

TEST(ChosenPromptExpertsTest, NoneForALinkThatIsTooSlow) {
  for (const PoolFormat format : kFormats) {
    EXPECT_GT(ChosenPromptExperts(512, format, 5e9).front(), 0);
    for (const double rate : {0.0, 1e9, 4.99e9}) {
      EXPECT_THAT(ChosenPromptExperts(512, format, rate), Each(0));
    }
  }
}

// A start is as the one before, though a link is never measured twice alike.
TEST(ChosenPromptExpertsTest, ALinkMeasuredAnewGivesTheSame) {
  for (const PoolFormat format : kFormats) {
    for (const auto& [slowest, fastest] :
         {std::pair{40.0, 1e6}, {20.0, 39.9}, {10.0, 19.9}, {5.0, 9.9}}) {
      const PromptExpertCounts counts = ChosenPromptExperts(512, format, slowest * 1e9);
      for (const double part : {0.01, 0.5, 1.0}) {
        const double gbps = slowest + part * (fastest - slowest);
        EXPECT_EQ(ChosenPromptExperts(512, format, gbps * 1e9), counts) << gbps << " GB/s";
      }
    }
  }
}

TEST(ChosenPromptExpertsTest, InfinityIsTheMost) {
  for (const PoolFormat format : kFormats) {
    EXPECT_EQ(ChosenPromptExperts(512, format, kInfinity), ChosenPromptExperts(512, format, 1e12));
    EXPECT_EQ(ChosenPromptExperts(512, format, kInfinity), ChosenPromptExperts(512, format, 5e10));
  }
}

// Hosts go through weights of fewer bits more slowly.
TEST(ChosenPromptExpertsTest, MoreOfAPoolOfFewerBits) {
  const PromptExpertCounts bits16 = ChosenPromptExperts(512, PoolFormat::kBF16, 5e10);
  const PromptExpertCounts bits8 = ChosenPromptExperts(512, PoolFormat::kInt8, 5e10);
  const PromptExpertCounts bits4 = ChosenPromptExperts(512, PoolFormat::kNF4, 5e10);
  EXPECT_EQ(ChosenPromptExperts(512, PoolFormat::kInt4, 5e10), bits4);
  for (size_t i = 0; i < bits4.size(); ++i) {
    EXPECT_GT(bits4[i], bits8[i]);
    EXPECT_GT(bits8[i], bits16[i]);
  }
}

}  // namespace
}  // namespace banyan
