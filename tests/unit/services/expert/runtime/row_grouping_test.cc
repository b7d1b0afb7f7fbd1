#include "services/expert/runtime/row_grouping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"

namespace banyan::expert {
namespace {

constexpr uint16_t kNone = 0xffff;

// Arrays of a call, at an odd address as in frames.
struct Places {
  Places(int32_t num_rows, int32_t top_k, const std::vector<uint16_t>& ids,
         const std::vector<float>& weights)
      : id_bytes(ids.size() * 2 + 1), weight_bytes(weights.size() * 4 + 1) {
    std::memcpy(id_bytes.data() + 1, ids.data(), ids.size() * 2);
    std::memcpy(weight_bytes.data() + 1, weights.data(), weights.size() * 4);
    call.num_rows = num_rows;
    call.top_k = top_k;
    call.expert_ids = id_bytes.data() + 1;
    call.weights = weight_bytes.data() + 1;
  }
  std::vector<std::byte> id_bytes;
  std::vector<std::byte> weight_bytes;
  ExpertCall call;
};

TEST(RowGroupingTest, GroupsByAscendingExpertThenRow) {
  const Places places(3, 2, {5, 3, kNone, 5, 3, 9}, {.1f, .2f, .3f, .4f, .5f, .6f});
  RowGrouping grouping(3, 7);
  ASSERT_TRUE(grouping.Check(places.call).ok());
  grouping.Group(places.call, 0, 3, [](int32_t n) { return n; });
  ASSERT_EQ(grouping.groups().size(), 3u);
  EXPECT_EQ(grouping.groups()[0].expert, 0);
  EXPECT_EQ(grouping.groups()[0].num_pairs, 2);
  EXPECT_EQ(grouping.groups()[1].expert, 2);
  EXPECT_EQ(grouping.groups()[1].first_pair, 2);
  EXPECT_EQ(grouping.groups()[2].expert, 6);
  const std::vector<int32_t> rows(grouping.rows().begin(), grouping.rows().end());
  const std::vector<float> weights(grouping.weights().begin(), grouping.weights().end());
  EXPECT_EQ(rows, (std::vector<int32_t>{0, 2, 0, 1, 2}));
  EXPECT_EQ(weights, (std::vector<float>{.2f, .5f, .1f, .4f, .6f}));
}

// Random calls, in blocks of rows: every pair is found once, in order.
TEST(RowGroupingTest, EveryPairOnce) {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(fmt::format("seed 11 round {}", round));
    const int32_t num_experts = 1 + static_cast<int32_t>(random() % 40);
    const int32_t first = static_cast<int32_t>(random() % 20);
    const int32_t top_k = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(num_experts));
    const int32_t num_rows = 1 + static_cast<int32_t>(random() % (round % 4 == 0 ? 400 : 50));
    std::vector<uint16_t> ids;
    std::vector<float> weights;
    std::vector<uint16_t> all(static_cast<size_t>(num_experts));
    std::iota(all.begin(), all.end(), static_cast<uint16_t>(first));
    for (int32_t row = 0; row < num_rows; ++row) {
      std::shuffle(all.begin(), all.end(), random);
      for (int32_t k = 0; k < top_k; ++k) {
        ids.push_back(random() % 4 == 0 ? kNone : all[static_cast<size_t>(k)]);
        weights.push_back(static_cast<float>(random() % 1000));
      }
    }
    const Places places(num_rows, top_k, ids, weights);
    RowGrouping grouping(first, num_experts);
    ASSERT_TRUE(grouping.Check(places.call).ok());
    const int32_t block = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(num_rows));
    for (int32_t begin = 0; begin < num_rows; begin += block) {
      const int32_t n = std::min(block, num_rows - begin);
      std::map<int32_t, std::vector<std::pair<int32_t, float>>> expected;
      for (int32_t row = 0; row < n; ++row) {
        for (int32_t k = 0; k < top_k; ++k) {
          const auto place = static_cast<size_t>((begin + row) * top_k + k);
          if (ids[place] != kNone) expected[ids[place] - first].push_back({row, weights[place]});
        }
      }
      const auto in_fours = [](int32_t pairs) { return (pairs + 3) / 4 * 4; };
      grouping.Group(places.call, begin, n, in_fours);
      std::map<int32_t, std::vector<std::pair<int32_t, float>>> found;
      int32_t next_pair = 0;
      int32_t next_place = 0;
      const ExpertGroup* last = nullptr;
      for (const ExpertGroup& group : grouping.groups()) {
        if (last != nullptr && group.expert == last->expert) {
          EXPECT_GT(expected[group.expert].size(), static_cast<size_t>(kMaxGroupPairs));
          EXPECT_LE(std::abs(group.num_pairs - last->num_pairs), 1);
        } else if (last != nullptr) {
          EXPECT_GT(group.expert, last->expert);
        }
        EXPECT_LE(group.num_pairs, kMaxGroupPairs);
        EXPECT_EQ(group.first_pair, next_pair);
        EXPECT_EQ(group.first_place, next_place);
        next_place += in_fours(group.num_pairs);
        last = &group;
        for (int32_t i = 0; i < group.num_pairs; ++i, ++next_pair) {
          const auto pair = static_cast<size_t>(next_pair);
          found[group.expert].push_back({grouping.rows()[pair], grouping.weights()[pair]});
        }
      }
      EXPECT_EQ(next_pair, static_cast<int32_t>(grouping.rows().size()));
      EXPECT_EQ(grouping.num_places(), next_place);
      std::vector<int32_t> by_length(grouping.groups().size());
      std::iota(by_length.begin(), by_length.end(), 0);
      std::stable_sort(by_length.begin(), by_length.end(), [&](int32_t a, int32_t b) {
        return grouping.groups()[static_cast<size_t>(a)].num_pairs >
               grouping.groups()[static_cast<size_t>(b)].num_pairs;
      });
      EXPECT_THAT(grouping.longest_first(), testing::ElementsAreArray(by_length));
      EXPECT_EQ(grouping.num_experts(), static_cast<int32_t>(expected.size()));
      EXPECT_EQ(found, expected);
    }
  }
}

TEST(RowGroupingTest, RefusesBadPlaces) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Case {
    std::vector<uint16_t> ids;
    std::vector<float> weights;
    std::string message;
  };
  const Case cases[] = {
      {{4, 5, 6, 8}, {1, 1, 1, 1}, "row 1 place 1: expert 8, this shard has 4 to 7"},
      {{3, 5, 6, 7}, {1, 1, 1, 1}, "row 0 place 0: expert 3, this shard has 4 to 7"},
      {{4, 5, 6, 6}, {1, 1, 1, 1}, "row 1 place 1: expert 6 twice in one row"},
      {{4, 5, 6, 7},
       {1, kNan, 1, 1},
       "row 0 place 1: weight nan of expert 5, expected a finite number"},
      {{4, 5, 6, 7},
       {1, 1, -kInfinity, 1},
       "row 1 place 0: weight -inf of expert 6, expected a finite number"},
  };
  for (const Case& c : cases) {
    const Places places(2, 2, c.ids, c.weights);
    const absl::Status status = RowGrouping(4, 4).Check(places.call);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ToStd(status.message()), c.message);
  }
  // Beside kNoExpert a weight means nothing; the same expert in two rows is usual.
  const Places fine(2, 2, {4, kNone, 4, kNone}, {1, kNan, 1, kNan});
  EXPECT_TRUE(RowGrouping(4, 4).Check(fine.call).ok());
}

}  // namespace
}  // namespace banyan::expert
