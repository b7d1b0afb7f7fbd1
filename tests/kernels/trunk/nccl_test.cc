// GPUs of one process joined by NCCL, a thread for each; as many of the tests as there are GPUs
// for.
#include "services/trunk/ops/collective/nccl.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "services/trunk/model/rank_threads.h"
#include "services/trunk/ops/cuda/cuda_backend.h"

namespace banyan::trunk {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kCounts[] = {1, 2048, 5 * 2048, 511 * 2048};

// A value for each element of each rank, of very different sizes: the order of adding shows.
std::vector<float> Values(int32_t rank, int64_t count) {
  std::mt19937_64 random(static_cast<uint64_t>(100 + rank));
  std::uniform_real_distribution<float> exponent(-20, 20);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(std::exp2(exponent(random)));
  return values;
}

std::vector<float> SumOf(int32_t size, int64_t count) {
  std::vector<float> sum = Values(0, count);
  for (int32_t rank = 1; rank < size; ++rank) {
    const std::vector<float> more = Values(rank, count);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }
  return sum;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// AllReduce of the backends, through their streams and memory.
void ExpectSums(int32_t size) {
  auto group = CreateNcclGroup(size);
  ASSERT_TRUE(group.ok()) << group.status();
  ASSERT_EQ((*group)->size(), size);
  RankThreads threads(size, absl::Milliseconds(1));
  std::vector<std::unique_ptr<Backend>> backends(static_cast<size_t>(size));
  threads.Run([&](int32_t rank) {
    auto made = CreateCudaBackend({.device = rank, .collective = (*group)->rank(rank)});
    ASSERT_TRUE(made.ok()) << made.status();
    backends[static_cast<size_t>(rank)] = *std::move(made);
  });
  if (testing::Test::HasFatalFailure()) return;
  for (const int64_t count : kCounts) {
    const std::vector<float> expected = SumOf(size, count);
    const size_t bytes = expected.size() * sizeof(float);
    for (int turn = 0; turn < 3; ++turn) {
      threads.Run([&](int32_t rank) {
        Backend& backend = *backends[static_cast<size_t>(rank)];
        const auto memory = backend.AllocateDevice(bytes);
        ASSERT_TRUE(memory.ok());
        auto* const x = reinterpret_cast<float*>(*memory);
        ASSERT_TRUE(backend.Upload(Values(rank, count).data(), bytes, x).ok());
        backend.AllReduce(x, count);
        ASSERT_TRUE(backend.Check().ok());
        std::vector<float> found(expected.size());
        const absl::Status read = backend.ReadBack(x, bytes, found.data());
        ASSERT_TRUE(read.ok()) << read;
        EXPECT_TRUE(SameBits(found, expected)) << "rank " << rank << ", " << count << " values";
      });
    }
  }
}

// The number of GPUs, if there are that many.
std::vector<int32_t> GpusFrom(int32_t least) {
  const int32_t count = CudaDeviceCount();
  return count >= least ? std::vector<int32_t>{count} : std::vector<int32_t>{};
}

class NcclTest : public testing::TestWithParam<int32_t> {};
class NcclPairTest : public testing::TestWithParam<int32_t> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(NcclTest);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(NcclPairTest);
INSTANTIATE_TEST_SUITE_P(Gpus, NcclTest, testing::ValuesIn(GpusFrom(1)));
INSTANTIATE_TEST_SUITE_P(Gpus, NcclPairTest, testing::ValuesIn(GpusFrom(2)));

TEST_P(NcclTest, OneRankOnOneGpu) { ExpectSums(1); }

TEST_P(NcclPairTest, TwoRanksOnTwoGpus) { ExpectSums(2); }

// What four and eight GPUs do, on as many as there are.
TEST_P(NcclPairTest, GatheredArraysAreAddedInTheOrderOfRanks) {
  const int32_t size = std::min(GetParam(), 8);
  auto group = CreateNcclGroup(size, {.always_gather = true});
  ASSERT_TRUE(group.ok()) << group.status();
  RankThreads threads(size, absl::Milliseconds(1));
  for (const int64_t count : kCounts) {
    const std::vector<float> expected = SumOf(size, count);
    const size_t bytes = expected.size() * sizeof(float);
    threads.Run([&](int32_t rank) {
      float* x = nullptr;
      float* scratch = nullptr;
      cudaStream_t stream = nullptr;
      ASSERT_EQ(cudaSetDevice(rank), cudaSuccess);
      ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
      ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&x), bytes), cudaSuccess);
      ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&scratch), bytes * static_cast<size_t>(size)),
                cudaSuccess);
      ASSERT_EQ(cudaMemcpy(x, Values(rank, count).data(), bytes, cudaMemcpyHostToDevice),
                cudaSuccess);
      ASSERT_TRUE((*group)->rank(rank)->AllReduce(x, count, scratch, stream).ok());
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      std::vector<float> found(expected.size());
      ASSERT_EQ(cudaMemcpy(found.data(), x, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
      EXPECT_TRUE(SameBits(found, expected)) << "rank " << rank << ", " << count << " values";
      cudaFree(x);
      cudaFree(scratch);
      cudaStreamDestroy(stream);
    });
  }
}

// Rank 0's device waits for rank 1, which never comes.
TEST_P(NcclPairTest, ARankThatFailsEndsTheWaitOfTheOthersDevices) {
  auto group = CreateNcclGroup(2);
  ASSERT_TRUE(group.ok()) << group.status();
  const absl::Status why = absl::InternalError("GPU 1: fault");
  RankThreads threads(2, absl::ZeroDuration());
  std::unique_ptr<Backend> backends[2];
  threads.Run([&](int32_t rank) {
    auto made = CreateCudaBackend({.device = rank, .collective = (*group)->rank(rank)});
    ASSERT_TRUE(made.ok()) << made.status();
    backends[rank] = *std::move(made);
  });
  if (HasFatalFailure()) return;
  threads.Run([&](int32_t rank) {
    Backend& backend = *backends[rank];
    if (rank == 1) {
      (*group)->rank(1)->Abort(why);
    } else {
      const auto memory = backend.AllocateDevice(4096);
      ASSERT_TRUE(memory.ok());
      backend.AllReduce(reinterpret_cast<float*>(*memory), 1024);
      EXPECT_THAT(std::string(backend.Synchronize().message()), HasSubstr("GPU 1: fault"));
    }
    EXPECT_THAT(std::string(backend.Check().message()), HasSubstr("GPU 1: fault"));
  });
}

TEST_P(NcclTest, MoreRanksThanGpusAreRefusedWithBothNumbers) {
  const int32_t count = GetParam();
  const absl::Status status = CreateNcclGroup(count + 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), "--tensor_parallel " + std::to_string(count + 1) +
                                               ": this machine has " + std::to_string(count) +
                                               " GPU(s), one for each part is needed");
}

}  // namespace
}  // namespace banyan::trunk
