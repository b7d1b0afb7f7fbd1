#include "services/trunk/ops/cpu/router_topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

namespace banyan::trunk::cpu {
namespace {

struct Result {
  std::vector<uint16_t> ids;
  std::vector<float> weights;
};

Result TopK(const std::vector<float>& logits, int32_t top_k, bool renormalize) {
  Result out{std::vector<uint16_t>(static_cast<size_t>(top_k)),
             std::vector<float>(static_cast<size_t>(top_k))};
  std::vector<float> scratch(logits.size());
  RouterTopKRow(logits.data(), static_cast<int32_t>(logits.size()), top_k, renormalize,
                scratch.data(), out.ids.data(), out.weights.data());
  return out;
}

TEST(RouterTopKTest, TiesGoToTheLowestId) {
  EXPECT_EQ(TopK({1, 3, 3, 2, 3}, 2, true).ids, (std::vector<uint16_t>{1, 2}));
  EXPECT_EQ(TopK({0, 0, 0, 0}, 3, true).ids, (std::vector<uint16_t>{0, 1, 2}));
  EXPECT_EQ(TopK({0, 0, 0, 0}, 4, true).weights, (std::vector<float>{.25f, .25f, .25f, .25f}));
}

TEST(RouterTopKTest, AgainstSortingInDoubles) {
  std::mt19937_64 random(5);
  for (int32_t experts : {1, 2, 16, 33, 512}) {
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

TEST(RouterTopKTest, BrokenLogitsStillGiveDistinctIds) {
  for (float broken : {static_cast<float>(NAN), static_cast<float>(INFINITY)}) {
    const Result found = TopK({broken, 1, broken, 2, broken}, 4, true);
    EXPECT_EQ(std::set<uint16_t>(found.ids.begin(), found.ids.end()).size(), 4u);
    for (uint16_t id : found.ids) EXPECT_LT(id, 5);
  }
}

}  // namespace
}  // namespace banyan::trunk::cpu
