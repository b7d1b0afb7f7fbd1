// A backend of one tier, and random arrays with a printed seed.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/parallel/worker_pool.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "services/trunk/ops/cpu/cpu_tier.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

inline constexpr double kEps = std::numeric_limits<float>::epsilon();

class OpsFixture : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto backend = CreateCpuBackend({.cpu_tier = GetParam()}, &pool_);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    RecordProperty("seed", static_cast<int>(kSeed));
  }

  // Another backend of the tier with that many threads, which this fixture keeps.
  Backend* BackendWithThreads(int num_threads) {
    pools_.push_back(std::make_unique<WorkerPool>(WorkerPool::Options{.num_threads = num_threads}));
    others_.push_back(*CreateCpuBackend({.cpu_tier = GetParam()}, pools_.back().get()));
    return others_.back().get();
  }

  std::vector<float> Random(size_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }

  static constexpr uint64_t kSeed = 77;
  std::mt19937_64 random_{kSeed};
  WorkerPool pool_{{.num_threads = 1}};
  std::vector<std::unique_ptr<WorkerPool>> pools_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<Backend>> others_;
};

inline testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " vs " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return testing::AssertionFailure() << "at " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

// Every tier that this CPU has; scalar at least.
#define BANYAN_FOR_ALL_TIERS(Fixture)                           \
  INSTANTIATE_TEST_SUITE_P(                                     \
      Tiers, Fixture, testing::ValuesIn(cpu::AvailableTiers()), \
      [](const testing::TestParamInfo<std::string>& param) { return param.param; })

}  // namespace banyan::trunk
