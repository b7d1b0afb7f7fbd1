// Products by the kernels of older devices and by those of this one, on this one.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "common/quant/bf16.h"
#include "services/trunk/ops/cuda/device.h"
#include "services/trunk/ops/cuda/linear.h"

namespace banyan::trunk::cuda {
namespace {

// An array on the device.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : bytes_(values.size() * sizeof(T)) {
    EXPECT_EQ(cudaMalloc(&data_, bytes_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> Read() const {
    std::vector<T> values(bytes_ / sizeof(T));
    EXPECT_EQ(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

class CudaLinearTest : public testing::Test {
 protected:
  std::vector<float> Random(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::vector<BF16> RandomBf16(int64_t count) {
    std::vector<BF16> values;
    for (float value : Random(count)) values.push_back(ToBF16(value));
    return values;
  }
  std::vector<int8_t> RandomCodes(int64_t count) {
    std::uniform_int_distribution<int> code(-127, 127);
    std::vector<int8_t> values(static_cast<size_t>(count));
    for (int8_t& value : values) value = static_cast<int8_t>(code(random_));
    return values;
  }

  std::mt19937_64 random_{20261201};
};

// What these are chosen by never takes part in a row's bits.
TEST_F(CudaLinearTest, KernelsOfOlderDevicesGiveTheSameBits) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const auto facts = OpenDevice(0);
  ASSERT_TRUE(facts.ok()) << facts.status();
  if (!facts->clusters) GTEST_SKIP() << "this is an older device";
  constexpr int32_t kMostRows = 300;
  for (int32_t k : {512, 2048, 4096}) {
    constexpr int32_t kOutputs[] = {2201, 70, 1100};
    const OnDevice<BF16> bf16(RandomBf16(int64_t{70} * k));
    const OnDevice<int8_t> codes(RandomCodes(int64_t{2201} * k));
    const OnDevice<int8_t> more(RandomCodes(int64_t{1100} * k));
    const OnDevice<float> scales(Random(int64_t{2201} * k / kGroupColumns));
    const OnDevice<float> x(Random(int64_t{kMostRows} * k));
    const OnDevice<float> split(std::vector<float>(static_cast<size_t>(384) * k));
    for (int32_t rows : {1, 4, 9, 16, 17, 40, 130, kMostRows}) {
      const auto run = [&](bool clusters, bool hopper) {
        const OnDevice<float> y(std::vector<float>(static_cast<size_t>(rows) * (2201 + 70 + 1100)));
        float* out = y.get();
        LinearMatrix matrices[3];
        for (int i = 0; i < 3; ++i) {
          matrices[i] = {.x = x.get(), .y = out, .n = kOutputs[i], .k = k};
          matrices[i].kind = i == 1 ? WeightKind::kBf16 : WeightKind::kInt8;
          matrices[i].scales = i == 1 ? nullptr : scales.get();
          out += int64_t{rows} * kOutputs[i];
        }
        matrices[0].w = codes.get();
        matrices[1].w = bf16.get();
        matrices[2].w = more.get();
        const LinearTuning tuning = {.num_sms = facts->num_sms,
                                     .shared_bytes = facts->shared_bytes,
                                     .clusters = clusters,
                                     .hopper = hopper,
                                     .split = split.get(),
                                     .split_bytes = int64_t{384} * k * 2 * kTerms};
        EXPECT_EQ(Linear(matrices, 3, rows, tuning, nullptr), cudaSuccess);
        EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        return y.Read();
      };
      const std::vector<float> expected = run(facts->clusters, facts->hopper);
      const std::vector<float> found = run(false, false);
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0)
          << k << " columns, " << rows << " rows";
    }
  }
}

}  // namespace
}  // namespace banyan::trunk::cuda
