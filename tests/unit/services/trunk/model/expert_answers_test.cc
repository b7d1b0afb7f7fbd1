// What rank 0 publishes and the others take; a rank that fails while another waits.
#include "services/trunk/model/expert_answers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/status/status.h"
#include "services/trunk/model/rank_threads.h"

namespace banyan::trunk {
namespace {

absl::Status Healthy() { return absl::OkStatus(); }

// Without and with polling.
class ExpertAnswersTest : public ::testing::TestWithParam<absl::Duration> {};

TEST_P(ExpertAnswersTest, EveryRankTakesEveryWordOnce) {
  constexpr int32_t kRanks = 4;
  constexpr int kAnswers = 300;
  ExpertAnswers answers(kRanks, GetParam());
  RankThreads threads(kRanks, GetParam());
  int rows[3] = {};  // in turn: whoever has taken a word has read what came before it
  threads.Run([&](int32_t rank) {
    for (int i = 0; i < kAnswers; ++i) {
      if (rank == 0) {
        rows[i % 3] = i;
        answers.Publish(absl::OkStatus());
      } else {
        ASSERT_TRUE(answers.Take(rank, Healthy).ok());
        ASSERT_EQ(rows[i % 3], i);
      }
    }
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
      const absl::Status word = step == 1 ? gone : absl::OkStatus();
      if (rank == 0) {
        answers.Publish(word);
      } else {
        EXPECT_EQ(answers.Take(rank, Healthy), word);
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
    if (rank == 0) {
      answers.Publish(absl::OkStatus());
      answers.Publish(absl::OkStatus());  // rank 2 never takes the first one
    } else if (rank == 1) {
      EXPECT_TRUE(answers.Take(rank, Healthy).ok());
      taken = true;
      EXPECT_EQ(answers.Take(rank, Healthy), fault);
    } else {
      while (!taken) std::this_thread::yield();
      answers.Fail(fault);
    }
  });
  EXPECT_EQ(answers.Take(1, Healthy), fault);
}

TEST_P(ExpertAnswersTest, ARankWhoseDeviceFailsWhileItWaitsFailsAll) {
  ExpertAnswers answers(3, GetParam());
  RankThreads threads(3, GetParam());
  const absl::Status fault = absl::InternalError("GPU 1: illegal address");
  threads.Run([&](int32_t rank) {
    if (rank == 0) return;  // waits for its device, which waits for rank 1's
    const auto health = [&] { return rank == 1 ? fault : absl::OkStatus(); };
    EXPECT_EQ(answers.Take(rank, health), fault);
  });
}

INSTANTIATE_TEST_SUITE_P(Waits, ExpertAnswersTest,
                         ::testing::Values(absl::ZeroDuration(), absl::Milliseconds(1)),
                         [](const auto& param) {
                           return param.param == absl::ZeroDuration() ? "Sleeping" : "Polling";
                         });

}  // namespace
}  // namespace banyan::trunk
