#include "services/trunk/routing/expert_share.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace banyan::trunk {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint16_t kNot = kOtherShard;

struct Batch {
  std::vector<uint16_t> ids;
  std::vector<float> weights;
};

// Each row has top_k different experts.
Batch RandomBatch(int32_t num_rows, int32_t num_experts, int32_t top_k, std::mt19937* random) {
  Batch batch;
  std::vector<uint16_t> experts(static_cast<size_t>(num_experts));
  std::iota(experts.begin(), experts.end(), uint16_t{0});
  for (int32_t row = 0; row < num_rows; ++row) {
    std::shuffle(experts.begin(), experts.end(), *random);
    batch.ids.insert(batch.ids.end(), experts.begin(), experts.begin() + top_k);
    for (int32_t k = 0; k < top_k; ++k) {
      batch.weights.push_back(static_cast<float>(batch.weights.size() + 1));
    }
  }
  return batch;
}

void ExpectAsDefined(const ExpertShare& share, const ExpertShare::Options& options,
                     const Batch& batch, const std::vector<ExpertShare::OwnRows>& own_rows) {
  std::vector<uint16_t> host_ids = batch.ids;
  std::vector<int32_t> pair_rows;
  std::vector<float> pair_weights;
  size_t group = 0;
  for (int32_t expert = 0; expert < options.own_experts; ++expert) {
    const auto first = static_cast<int32_t>(pair_rows.size());
    for (const ExpertShare::OwnRows& range : own_rows) {
      if (expert >= range.own_experts) continue;
      for (int32_t row = range.first; row < range.end; ++row) {
        for (int32_t k = 0; k < options.top_k; ++k) {
          const auto place = static_cast<size_t>(row * options.top_k + k);
          if (batch.ids[place] != expert) continue;
          pair_rows.push_back(row);
          pair_weights.push_back(batch.weights[place]);
          host_ids[place] = kNot;
        }
      }
    }
    const int32_t num_pairs = static_cast<int32_t>(pair_rows.size()) - first;
    if (num_pairs == 0) continue;
    ASSERT_LT(group, share.groups().size());
    EXPECT_EQ(share.groups()[group].expert, expert);
    EXPECT_EQ(share.groups()[group].first_pair, first);
    EXPECT_EQ(share.groups()[group].num_pairs, num_pairs);
    ++group;
  }
  EXPECT_EQ(share.groups().size(), group);
  EXPECT_THAT(share.pair_rows(), testing::ElementsAreArray(pair_rows));
  EXPECT_THAT(share.pair_weights(), testing::ElementsAreArray(pair_weights));
  EXPECT_TRUE(std::equal(host_ids.begin(), host_ids.end(), share.host_ids()));
  EXPECT_EQ(share.host_ids() == batch.ids.data(), pair_rows.empty());
}

TEST(ExpertShareTest, GroupsTheRowsPairsByExpert) {
  ExpertShare share({.num_experts = 8, .top_k = 2, .own_experts = 3, .max_rows = 5});
  const std::vector<uint16_t> ids = {1, 0, 7, 1, 0, 5, 3, 4, 2, 0};
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const std::vector<ExpertShare::OwnRows> rows = {{1, 2, 3}, {3, 5, 3}};
  for (int repeat = 0; repeat < 2; ++repeat) {
    share.Build(5, rows, ids.data(), weights.data());
    ASSERT_EQ(share.groups().size(), 3u);
    EXPECT_EQ(share.groups()[1].expert, 1);
    EXPECT_EQ(share.groups()[1].first_pair, 1);
    EXPECT_EQ(share.groups()[1].num_pairs, 1);
    EXPECT_THAT(share.pair_rows(), ElementsAre(4, 1, 4));
    EXPECT_THAT(share.pair_weights(), ElementsAre(10, 4, 9));
    EXPECT_THAT(std::vector<uint16_t>(share.host_ids(), share.host_ids() + ids.size()),
                ElementsAre(1, 0, 7, kNot, 0, 5, 3, 4, kNot, kNot));
  }
}

TEST(ExpertShareTest, LendsTheBatchWhereNothingIsItsOwn) {
  const std::vector<uint16_t> ids = {1, 0, 7, 1};
  const std::vector<float> weights = {1, 2, 3, 4};
  const std::vector<ExpertShare::OwnRows> all = {{0, 2, 2}};
  const std::vector<ExpertShare::OwnRows> nothing = {{0, 2, 0}};
  ExpertShare none({.num_experts = 8, .top_k = 2, .own_experts = 0, .max_rows = 2});
  ExpertShare some({.num_experts = 8, .top_k = 2, .own_experts = 2, .max_rows = 2});
  some.Build(2, all, ids.data(), weights.data());
  EXPECT_EQ(some.pair_rows().size(), 3u);
  none.Build(2, nothing, ids.data(), weights.data());
  some.Build(2, {}, ids.data(), weights.data());
  for (const ExpertShare* share : {&none, &some}) {
    EXPECT_THAT(share->groups(), IsEmpty());
    EXPECT_THAT(share->pair_rows(), IsEmpty());
    EXPECT_THAT(share->pair_weights(), IsEmpty());
    EXPECT_EQ(share->host_ids(), ids.data());
  }
}

TEST(ExpertShareTest, RandomBatches) {
  std::mt19937 random(3);
  const auto below = [&](int32_t n) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
  };
  for (int round = 0; round < 300; ++round) {
    const int32_t num_experts = 1 + below(40);
    const ExpertShare::Options options = {.num_experts = num_experts,
                                          .top_k = 1 + below(std::min(num_experts, 6)),
                                          .own_experts = round % 5 == 0   ? 0
                                                         : round % 5 == 1 ? num_experts
                                                                          : below(num_experts),
                                          .max_rows = 60};
    ExpertShare share(options);
    for (int batches = 0; batches < 3; ++batches) {
      const int32_t num_rows = batches == 0 ? options.max_rows : 1 + below(options.max_rows);
      const Batch batch = RandomBatch(num_rows, num_experts, options.top_k, &random);
      std::vector<ExpertShare::OwnRows> own_rows;
      const auto own = [&] { return below(options.own_experts + 1); };
      if (round % 3 == 0) {
        own_rows.push_back({0, num_rows, options.own_experts});
      } else {
        for (int32_t at = below(5); at < num_rows;) {
          const int32_t end = std::min(at + below(9), num_rows);  // may be empty
          own_rows.push_back({at, end, own()});
          at = end + below(5) + (end == at ? 1 : 0);
        }
      }
      share.Build(num_rows, own_rows, batch.ids.data(), batch.weights.data());
      ExpectAsDefined(share, options, batch, own_rows);
    }
  }
}

TEST(ExpertShareTest, TheModelsShape) {
  std::mt19937 random(4);
  const ExpertShare::Options options = {
      .num_experts = 512, .top_k = 10, .own_experts = 256, .max_rows = 4159};
  ExpertShare share(options);
  const Batch batch = RandomBatch(options.max_rows, options.num_experts, options.top_k, &random);
  const std::vector<ExpertShare::OwnRows> own_rows = {
      {1, 2000, 256}, {2000, 2064, 100}, {2100, 4159, 256}};
  share.Build(options.max_rows, own_rows, batch.ids.data(), batch.weights.data());
  ExpectAsDefined(share, options, batch, own_rows);
}

TEST(ExpertShareDeathTest, RowsInNoOrderAreOurBug) {
  ExpertShare share({.num_experts = 8, .top_k = 1, .own_experts = 3, .max_rows = 4});
  const std::vector<uint16_t> ids(4, 1);
  const std::vector<float> weights(4, 1.0f);
  const auto build = [&](const std::vector<ExpertShare::OwnRows>& rows) {
    share.Build(3, rows, ids.data(), weights.data());
  };
  EXPECT_DEATH(build({{0, 2, 3}, {1, 3, 3}}), "last_end");
  EXPECT_DEATH(build({{0, 4, 3}}), "num_rows");
  EXPECT_DEATH(build({{2, 1, 3}}), "range.first");
  EXPECT_DEATH(build({{0, 2, 4}}), "own_experts");
  EXPECT_DEATH(share.Build(5, {}, ids.data(), weights.data()), "max_rows");
}

}  // namespace
}  // namespace banyan::trunk
