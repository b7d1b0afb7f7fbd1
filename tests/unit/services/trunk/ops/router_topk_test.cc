#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

struct Result {
  std::vector<uint16_t> ids;
  std::vector<float> weights;
};

class RouterTopKTest : public OpsFixture {
 protected:
  void SetUp() override {
    OpsFixture::SetUp();
    ASSERT_TRUE(backend_
                    ->Reserve({.max_rows = 4,
                               .max_segments = 1,
                               .max_position = 1,
                               .num_experts = kMaxExperts,
                               .attention = {},
                               .delta_net = {}})
                    .ok());
  }

  // Four equal rows, which must come out equal.
  Result TopK(const std::vector<float>& logits, int32_t top_k, bool renormalize) {
    constexpr int32_t kRows = 4;
    const auto k = static_cast<size_t>(top_k);
    std::vector<float> rows;
    for (int32_t i = 0; i < kRows; ++i) rows.insert(rows.end(), logits.begin(), logits.end());
    std::vector<uint16_t> ids(kRows * k, 0xffff);
    std::vector<float> weights(kRows * k, NAN);
    backend_->RouterTopK(kRows, static_cast<int32_t>(logits.size()), top_k, renormalize,
                         rows.data(), ids.data(), weights.data());
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], ids[i % k]);
    return {{ids.end() - top_k, ids.end()}, {weights.end() - top_k, weights.end()}};
  }
};

TEST_P(RouterTopKTest, TiesGoToTheLowestId) {
  EXPECT_EQ(TopK({1, 3, 3, 2, 3}, 2, true).ids, (std::vector<uint16_t>{1, 2}));
  EXPECT_EQ(TopK({0, 0, 0, 0}, 3, true).ids, (std::vector<uint16_t>{0, 1, 2}));
  EXPECT_EQ(TopK({0, 0, 0, 0}, 4, true).weights, (std::vector<float>{.25f, .25f, .25f, .25f}));
}

TEST_P(RouterTopKTest, AgainstSortingInDoubles) {
  std::mt19937_64 random(5);
  for (int32_t experts : {1, 2, 16, 33, 129, 512, 1024}) {
    for (int32_t top_k : {1, 2, 10}) {
      if (top_k > experts) continue;
      std::normal_distribution<float> normal(0, 3);
      std::vector<float> logits(static_cast<size_t>(experts));
      for (float& logit : logits) logit = normal(random);
      std::vector<uint16_t> order(logits.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint16_t>(i);
      std::stable_sort(order.begin(), order.end(),
                       [&](uint16_t a, uint16_t b) { return logits[a] > logits[b]; });
      double all = 0;
      double chosen = 0;
      for (size_t i = 0; i < order.size(); ++i) {
        all += std::exp(static_cast<double>(logits[order[i]]));
        if (i < static_cast<size_t>(top_k)) {
          chosen += std::exp(static_cast<double>(logits[order[i]]));
        }
      }
      for (bool renormalize : {false, true}) {
        const Result found = TopK(logits, top_k, renormalize);
        for (size_t i = 0; i < static_cast<size_t>(top_k); ++i) {
          EXPECT_EQ(found.ids[i], order[i]);
          const double expected =
              std::exp(static_cast<double>(logits[order[i]])) / (renormalize ? chosen : all);
          EXPECT_NEAR(found.weights[i], expected, (experts + 8) * 1.2e-7 * expected);
        }
      }
    }
  }
}

TEST_P(RouterTopKTest, BrokenLogitsStillGiveDistinctIds) {
  for (float broken : {static_cast<float>(NAN), static_cast<float>(INFINITY)}) {
    const Result found = TopK({broken, 1, broken, 2, broken}, 4, true);
    EXPECT_EQ(std::set<uint16_t>(found.ids.begin(), found.ids.end()).size(), 4u);
    for (uint16_t id : found.ids) EXPECT_LT(id, 5);
  }
}

BANYAN_FOR_ALL_BACKENDS(RouterTopKTest);

}  // namespace
}  // namespace banyan::trunk
