// A backend, and random arrays with a printed seed. Tests give operations their own arrays, also
// where the device has memory of its own.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/parallel/worker_pool.h"
#include "services/trunk/ops/ops.h"
#include "tests/fakes/backends.h"
#include "tests/fakes/same_bits.h"

namespace banyan::trunk {

inline constexpr double kEps = std::numeric_limits<float>::epsilon();

class OpsFixture : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    backend_ = test::MakeBackendOnHostArrays(GetParam(), &pool_);
    RecordProperty("seed", static_cast<int>(kSeed));
  }

  // Another one of the kind with that many threads, which this fixture keeps.
  Backend* BackendWithThreads(int num_threads) {
    pools_.push_back(std::make_unique<WorkerPool>(WorkerPool::Options{.num_threads = num_threads}));
    others_.push_back(test::MakeBackendOnHostArrays(GetParam(), pools_.back().get()));
    return others_.back().get();
  }

  // What a product loses beside the rounding of its sums, relative to the sum of magnitudes: GPUs
  // split f32 in two bf16 (ops/cuda/device.cuh).
  static double SplitLoss() { return test::IsCpu(GetParam()) ? 0 : 0x1p-17; }
  // Roundings for each one that a vector's sum makes: tensor cores cut off, twice per 16 products;
  // tiles add 16 products one after the other.
  static double Roundings() { return test::HasTiles(GetParam()) ? 4 : 1; }

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

using test::SameBits;

// Every tier that this CPU has, scalar at least, and the GPU if there is one.
#define BANYAN_FOR_ALL_BACKENDS(Fixture)                               \
  INSTANTIATE_TEST_SUITE_P(                                            \
      Backends, Fixture, testing::ValuesIn(test::AvailableBackends()), \
      [](const testing::TestParamInfo<std::string>& param) { return param.param; })

}  // namespace banyan::trunk
