#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "tests/unit/services/trunk/ops/ops_fixture.h"

namespace banyan::trunk {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kMaxRows = 5;
constexpr int32_t kMaxVocab = 151936;

struct Found {
  std::vector<float> scores;
  std::vector<int32_t> ids;
  std::vector<int32_t> bounded;
};

// The contract by a full sort, on one row.
std::vector<std::pair<float, int32_t>> Sorted(const float* row, int32_t num_ids) {
  std::vector<std::pair<float, int32_t>> all;
  for (int32_t id = 0; id < num_ids; ++id) all.emplace_back(row[id], id);
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  return all;
}

class TopLogitsTest : public OpsFixture {
 protected:
  void SetUp() override {
    OpsFixture::SetUp();
    ReserveFor(kMaxVocab);
  }

  void ReserveFor(int32_t vocab_size) {
    const absl::Status reserved = backend_->Reserve({.max_rows = kMaxRows,
                                                     .max_segments = 1,
                                                     .max_position = 1,
                                                     .num_experts = 1,
                                                     .attention = {},
                                                     .delta_net = {},
                                                     .max_logits_rows = kMaxRows,
                                                     .vocab_size = vocab_size});
    ASSERT_TRUE(reserved.ok()) << reserved;
  }

  Found Top(const std::vector<float>& logits, int32_t vocab_size, int32_t num_ids, int32_t k) {
    const auto rows = static_cast<int32_t>(logits.size() / static_cast<size_t>(vocab_size));
    const auto count = static_cast<size_t>(rows) * static_cast<size_t>(k);
    Found found = {std::vector<float>(count, kNan), std::vector<int32_t>(count, -1),
                   std::vector<int32_t>(static_cast<size_t>(rows), -1)};
    backend_->TopLogits(rows, {.vocab_size = vocab_size,
                               .num_ids = num_ids,
                               .k = k,
                               .logits = logits.data(),
                               .scores = found.scores.data(),
                               .ids = found.ids.data(),
                               .bounded = found.bounded.data()});
    return found;
  }

  // `fill` gives the logit of an id that counts; the others are above all of them.
  void ExpectSorted(int32_t num_ids, const std::function<float(int32_t)>& fill) {
    const int32_t vocab_size = num_ids + num_ids % 3;
    constexpr int32_t kRows = 3;
    std::vector<float> logits(kRows * static_cast<size_t>(vocab_size), kInf);
    for (int32_t row = 0; row < kRows; ++row) {
      for (int32_t id = 0; id < num_ids; ++id) {
        logits[static_cast<size_t>(row * vocab_size + id)] = fill(id);
      }
    }
    for (const int32_t k : {1, 2, 20, 63, kMaxTopLogits}) {
      if (k > num_ids) continue;
      const Found found = Top(logits, vocab_size, num_ids, k);
      for (int32_t row = 0; row < kRows; ++row) {
        const float* const values = &logits[static_cast<size_t>(row * vocab_size)];
        const auto expected = Sorted(values, num_ids);
        ASSERT_EQ(found.bounded[static_cast<size_t>(row)], 1);
        for (int32_t i = 0; i < k; ++i) {
          const auto at = static_cast<size_t>(row * k + i);
          const auto& [score, id] = expected[static_cast<size_t>(i)];
          ASSERT_EQ(found.ids[at], id)
              << num_ids << " ids, row " << row << ", " << i << " of " << k;
          // A zero keeps its sign.
          ASSERT_EQ(std::memcmp(&found.scores[at], &score, sizeof(float)), 0);
        }
      }
    }
  }
};

TEST_P(TopLogitsTest, AgreesWithSorting) {
  std::normal_distribution<float> normal(0, 2);
  for (const int32_t num_ids :
       {1, 2, 20, 63, 64, 65, 255, 256, 257, 1187, 4095, 4096, 4097, 8193, 20000, 151669}) {
    SCOPED_TRACE(num_ids);
    ASSERT_NO_FATAL_FAILURE(ExpectSorted(num_ids, [&](int32_t) { return normal(random_); }));
    // Ties, many of them for the highest.
    ASSERT_NO_FATAL_FAILURE(
        ExpectSorted(num_ids, [&](int32_t) { return std::round(normal(random_)); }));
    ASSERT_NO_FATAL_FAILURE(
        ExpectSorted(num_ids, [&](int32_t) { return random_() % 2 == 0 ? 0.0f : -0.0f; }));
  }
}

TEST_P(TopLogitsTest, InAnyOrder) {
  for (const int32_t num_ids : {70, 4096, 9001}) {
    SCOPED_TRACE(num_ids);
    ASSERT_NO_FATAL_FAILURE(ExpectSorted(num_ids, [](int32_t id) { return id * 0.5f; }));
    ASSERT_NO_FATAL_FAILURE(ExpectSorted(num_ids, [](int32_t id) { return id * -0.5f; }));
    ASSERT_NO_FATAL_FAILURE(ExpectSorted(num_ids, [](int32_t) { return -7.25f; }));
    // The highest beside each other, at the start and at the end.
    ASSERT_NO_FATAL_FAILURE(
        ExpectSorted(num_ids, [](int32_t id) { return id < 64 ? 3.0f + id % 5 : -3.0f; }));
    ASSERT_NO_FATAL_FAILURE(ExpectSorted(
        num_ids, [&](int32_t id) { return id >= num_ids - 64 ? 3.0f + id % 5 : -3.0f; }));
    // And a whole number of threads apart.
    ASSERT_NO_FATAL_FAILURE(
        ExpectSorted(num_ids, [](int32_t id) { return id % 256 < 4 ? 3.0f : -3.0f; }));
  }
}

TEST_P(TopLogitsTest, ExtremesAreBounded) {
  const float kMost = std::nextafter(0x1p100f, 0.0f);
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  const float values[] = {kMost, -kMost, kLeast, -kLeast, 0.0f, -0.0f, 1.0f, -1.0f};
  for (const int32_t num_ids : {8, 100, 5000}) {
    ASSERT_NO_FATAL_FAILURE(
        ExpectSorted(num_ids, [&](int32_t) { return values[random_() % std::size(values)]; }));
  }
}

TEST_P(TopLogitsTest, SaysWhichRowsAreNotBounded) {
  for (const int32_t num_ids : {1, 100, 4097, 151669}) {
    const int32_t vocab_size = num_ids + 2;
    for (const float bad : {kNan, -kNan, kInf, -kInf, 0x1p100f, -0x1p100f}) {
      for (const int32_t at : {0, num_ids / 2, num_ids - 1}) {
        std::vector<float> logits = Random(3 * static_cast<size_t>(vocab_size));
        logits[static_cast<size_t>(vocab_size + at)] = bad;
        // Those that do not count.
        logits[static_cast<size_t>(2 * vocab_size + num_ids)] = bad;
        const Found found = Top(logits, vocab_size, num_ids, 1);
        EXPECT_EQ(found.bounded, (std::vector<int32_t>{1, 0, 1})) << num_ids << " " << bad;
      }
    }
  }
}

// More pieces than lists.
TEST_P(TopLogitsTest, LargeVocabulary) {
  constexpr int32_t kIds = 300007;
  ReserveFor(kIds + kIds % 3);
  std::normal_distribution<float> normal(0, 2);
  ExpectSorted(kIds, [&](int32_t) { return normal(random_); });
  ExpectSorted(kIds, [&](int32_t id) { return id * 1e-3f; });
}

TEST_P(TopLogitsTest, ARowIsItsOwn) {
  constexpr int32_t kIds = 10000;
  const std::vector<float> rows = Random(kMaxRows * static_cast<size_t>(kIds));
  const Found all = Top(rows, kIds, kIds, kMaxTopLogits);
  for (size_t row = 0; row < kMaxRows; ++row) {
    const auto begin = rows.begin() + static_cast<int64_t>(row) * kIds;
    const Found alone = Top({begin, begin + kIds}, kIds, kIds, kMaxTopLogits);
    for (size_t i = 0; i < alone.ids.size(); ++i) {
      EXPECT_EQ(alone.ids[i], all.ids[row * kMaxTopLogits + i]);
      EXPECT_EQ(alone.scores[i], all.scores[row * kMaxTopLogits + i]);
    }
  }
}

BANYAN_FOR_ALL_BACKENDS(TopLogitsTest);

}  // namespace
}  // namespace banyan::trunk
