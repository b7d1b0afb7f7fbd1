#include "common/parallel/worker_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <memory>
#include <set>
#include <vector>

#include "common/parallel/topology.h"

namespace banyan {
namespace {

struct Setting {
  int num_threads;
  absl::Duration spin;
};

class WorkerPoolTest : public testing::TestWithParam<Setting> {
 protected:
  WorkerPool pool_{{.num_threads = GetParam().num_threads, .spin = GetParam().spin}};
};

TEST_P(WorkerPoolTest, EveryTileOnceAndItsWritesAreVisible) {
  // Plain ints: the thread sanitizer would see a missing happens-before edge.
  for (int64_t num_tiles : {0, 1, 2, 3, 7, 64, 1000, 2, 1}) {
    std::vector<int> counts(static_cast<size_t>(num_tiles), 0);
    std::vector<int> threads(static_cast<size_t>(num_tiles), -1);
    pool_.ParallelFor(num_tiles, [&](int64_t tile, int thread) {
      ++counts[static_cast<size_t>(tile)];
      threads[static_cast<size_t>(tile)] = thread;
    });
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      EXPECT_EQ(counts[static_cast<size_t>(tile)], 1) << "tile " << tile << " of " << num_tiles;
      EXPECT_GE(threads[static_cast<size_t>(tile)], 0);
      EXPECT_LT(threads[static_cast<size_t>(tile)], pool_.num_threads());
    }
  }
}

TEST_P(WorkerPoolTest, ManyShortLoopsInSequenceEachSeesTheOneBefore) {
  // Each tile reads what its neighbour wrote in the loop before: wrong unless loops are ordered.
  constexpr int kLoops = 3000;
  std::vector<int64_t> now(5, 0);
  std::vector<int64_t> before(5, 0);
  for (int loop = 1; loop <= kLoops; ++loop) {
    now.swap(before);
    pool_.ParallelFor(5, [&](int64_t tile, int) {
      now[static_cast<size_t>(tile)] = before[static_cast<size_t>((tile + 1) % 5)] + 1;
    });
    ASSERT_EQ(now, std::vector<int64_t>(5, loop));
  }
}

TEST_P(WorkerPoolTest, LoopsAfterARestSeeTheOneBefore) {
  std::vector<int64_t> values(64, 0);
  for (int64_t round = 0; round < 2000; ++round) {
    pool_.ParallelFor(64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += i + round; });
    if (round % 3 != 0) pool_.Rest();
  }
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(values[static_cast<size_t>(i)], 2000 * i + 1999 * 2000 / 2) << i;
  }
}

TEST_P(WorkerPoolTest, ATileThatWaitsForTheOthersIsNotAlone) {
  // Tiles are taken one by one, so a long tile leaves all others to the remaining threads.
  if (pool_.num_threads() == 1) return;
  std::atomic<int> others{0};
  pool_.ParallelFor(50, [&](int64_t tile, int) {
    if (tile == 0) {
      while (others.load() < 49) sched_yield();
    } else {
      others.fetch_add(1);
    }
  });
  EXPECT_EQ(others.load(), 49);
}

TEST_P(WorkerPoolTest, ThreadNumbersAreNotSharedWithinALoop) {
  std::vector<std::atomic<int>> in_use(static_cast<size_t>(pool_.num_threads()));
  std::atomic<int> clashes{0};
  pool_.ParallelFor(2000, [&](int64_t, int thread) {
    if (in_use[static_cast<size_t>(thread)].exchange(1) != 0) clashes.fetch_add(1);
    in_use[static_cast<size_t>(thread)].store(0);
  });
  EXPECT_EQ(clashes.load(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, WorkerPoolTest,
    testing::Values(Setting{1, absl::Microseconds(200)}, Setting{2, absl::Microseconds(200)},
                    Setting{2, absl::ZeroDuration()}, Setting{5, absl::ZeroDuration()},
                    Setting{8, absl::Microseconds(50)}, Setting{3, absl::Seconds(10)}),
    [](const testing::TestParamInfo<Setting>& param) {
      return "Threads" + std::to_string(param.param.num_threads) + "Spin" +
             std::to_string(absl::ToInt64Microseconds(param.param.spin)) + "us";
    });

TEST(WorkerPoolLifeTest, StartsAndStopsWithAndWithoutWork) {
  for (int i = 0; i < 50; ++i) {
    WorkerPool pool({.num_threads = 4, .spin = absl::Microseconds(i % 3)});
    if (i % 2 == 0) continue;
    std::atomic<int> n{0};
    pool.ParallelFor(10, [&](int64_t, int) { n.fetch_add(1); });
    EXPECT_EQ(n.load(), 10);
  }
}

TEST(WorkerPoolLifeTest, PinsWorkersInsideTheMask) {
  const std::vector<int> cpus = AffinityCpus();
  WorkerPool pool({.num_threads = 2, .pin = true});
  std::set<int> seen;
  std::atomic<bool> worker_ran{false};
  pool.ParallelFor(2, [&](int64_t, int thread) {
    // The caller keeps its tile until the worker has taken the other one.
    if (thread == 0) {
      while (!worker_ran.load()) sched_yield();
    } else {
      for (int cpu : AffinityCpus()) seen.insert(cpu);
      worker_ran.store(true);
    }
  });
  // The mask may be set a moment after the thread started, but never to anything else.
  EXPECT_TRUE(seen == std::set<int>{cpus[1 % cpus.size()]} ||
              seen == std::set<int>(cpus.begin(), cpus.end()));
}

}  // namespace
}  // namespace banyan
