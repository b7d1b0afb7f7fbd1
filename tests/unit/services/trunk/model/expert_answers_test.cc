// What rank 0 publishes and the others take; a rank that fails while another waits.
#include "services/trunk/model/expert_answers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "services/trunk/model/rank_threads.h"

namespace banyan::trunk {
namespace {

absl::Status Healthy() { return absl::OkStatus(); }

// Without and with polling.
class ExpertAnswersTest : public ::testing::TestWithParam<absl::Duration> {};

TEST_P(ExpertAnswersTest, EveryRankTakesEveryAnswerOnce) {
  constexpr int32_t kRanks = 4;
  constexpr int kAnswers = 300;
  ExpertAnswers answers(kRanks, GetParam());
  RankThreads threads(kRanks, GetParam());
  threads.Run([&](int32_t rank) {
    std::vector<float> rows(33);
    for (int i = 0; i < kAnswers; ++i) {
      if (rank == 0) {
        answers.AwaitTaken();
        rows.assign(rows.size(), static_cast<float>(i));  // no other rank reads them now
        answers.Publish(absl::OkStatus(), rows.data());
      } else {
        ASSERT_TRUE(answers.Take(rank, rows.size() * sizeof(float), rows.data(), Healthy).ok());
        for (const float value : rows) ASSERT_EQ(value, static_cast<float>(i));
      }
    }
    if (rank == 0) answers.AwaitTaken();  // `rows` goes
  });
}

TEST_P(ExpertAnswersTest, AnErrorIsEverybodysAndTheNextAnswerComes) {
  ExpertAnswers answers(2, GetParam());
  RankThreads threads(2, GetParam());
  const absl::Status gone = absl::UnavailableError("shard 1 is gone");
  for (int step = 0; step < 3; ++step) {
    answers.BeginStep();
    EXPECT_FALSE(answers.told_failure());
    threads.Run([&](int32_t rank) {
      float row = 5;
      if (rank == 0) {
        answers.AwaitTaken();
        answers.Publish(step == 1 ? gone : absl::OkStatus(), &row);
        answers.AwaitTaken();
      } else {
        float taken = 0;
        const absl::Status status = answers.Take(rank, sizeof(taken), &taken, Healthy);
        EXPECT_EQ(status, step == 1 ? gone : absl::OkStatus());
        EXPECT_EQ(taken, step == 1 ? 0.0f : 5.0f);
      }
    });
    EXPECT_EQ(answers.told_failure(), step == 1);
  }
}

TEST_P(ExpertAnswersTest, ARankThatFailsAloneEndsTheWaitOfTheOthers) {
  ExpertAnswers answers(3, GetParam());
  RankThreads threads(3, GetParam());
  const absl::Status fault = absl::InternalError("GPU 2: illegal address");
  std::atomic<bool> taken{false};
  threads.Run([&](int32_t rank) {
    float row = 1;
    if (rank == 0) {
      answers.Publish(absl::OkStatus(), &row);
      answers.AwaitTaken();  // rank 2 never takes it
      answers.Publish(absl::OkStatus(), &row);
    } else if (rank == 1) {
      EXPECT_TRUE(answers.Take(rank, sizeof(row), &row, Healthy).ok());
      taken = true;
      EXPECT_EQ(answers.Take(rank, sizeof(row), &row, Healthy), fault);
    } else {
      while (!taken) std::this_thread::yield();
      answers.Fail(fault);
    }
  });
  float row = 0;
  EXPECT_EQ(answers.Take(1, sizeof(row), &row, Healthy), fault);
}

TEST_P(ExpertAnswersTest, ARankWhoseDeviceFailsWhileItWaitsFailsAll) {
  ExpertAnswers answers(3, GetParam());
  RankThreads threads(3, GetParam());
  const absl::Status fault = absl::InternalError("GPU 1: illegal address");
  threads.Run([&](int32_t rank) {
    float row = 1;
    if (rank == 0) return;  // waits for its device, which waits for rank 1's
    const auto health = [&] { return rank == 1 ? fault : absl::OkStatus(); };
    EXPECT_EQ(answers.Take(rank, sizeof(row), &row, health), fault);
  });
}

INSTANTIATE_TEST_SUITE_P(Waits, ExpertAnswersTest,
                         ::testing::Values(absl::ZeroDuration(), absl::Milliseconds(1)),
                         [](const auto& param) {
                           return param.param == absl::ZeroDuration() ? "Sleeping" : "Polling";
                         });

}  // namespace
}  // namespace banyan::trunk
