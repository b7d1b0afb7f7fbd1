// SiLU, the conversions between bf16 and f32, and sums of rows, of every tier.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/quant/reference.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/kernels/kernel_table.h"

namespace banyan::expert {
namespace {

class ElementwiseTest : public ::testing::TestWithParam<const FfnKernels*> {};

INSTANTIATE_TEST_SUITE_P(Tiers, ElementwiseTest,
                         ::testing::ValuesIn(AvailableKernels(ReadCpuFeatures())),
                         [](const auto& tested) { return std::string(tested.param->name); });

// Every 1031st float of both signs: 4 million values over all exponents.
TEST_P(ElementwiseTest, SiluWithinFourUnitsInTheLastPlace) {
  double worst = 0;
  float worst_at = 0;
  std::vector<float> x;
  std::vector<float> y;
  const auto check = [&] {
    y = x;
    GetParam()->silu(y.data(), static_cast<int64_t>(y.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = ReferenceSilu(x[i]);
      if (x[i] < -88.7f || std::abs(expected) < std::numeric_limits<float>::min()) {
        ASSERT_NEAR(y[i], expected, 3e-37) << x[i];
        continue;
      }
      const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
      const double error = std::abs(y[i] - expected) / ulp;
      if (!(error <= worst)) {
        worst = error;
        worst_at = x[i];
      }
    }
    x.clear();
  };
  for (uint64_t bits = 0; bits < 0x100000000ull; bits += 1031) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!std::isfinite(value)) continue;
    x.push_back(value);
    if (x.size() == 4096 - 3) {
      ASSERT_NO_FATAL_FAILURE(check());
    }
  }
  ASSERT_NO_FATAL_FAILURE(check());
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LE(worst, 4.0) << "at " << worst_at;
}

TEST_P(ElementwiseTest, SiluOfSpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> x = {0.0f,    -0.0f,  kInfinity, std::numeric_limits<float>::quiet_NaN(),
                          -200.0f, 200.0f, -103.9f};
  GetParam()->silu(x.data(), static_cast<int64_t>(x.size()));
  EXPECT_EQ(x[0], 0.0f);
  EXPECT_EQ(x[1], 0.0f);
  EXPECT_EQ(x[2], kInfinity);
  EXPECT_TRUE(std::isnan(x[3]));
  EXPECT_EQ(x[4], 0.0f);
  EXPECT_EQ(x[5], 200.0f);
  EXPECT_NEAR(x[6], 0.0f, 3e-37);
}

TEST_P(ElementwiseTest, SiluDoesNotDependOnPlaceOrLength) {
  std::vector<float> x;
  for (int i = 0; i < 70; ++i) x.push_back(std::sin(static_cast<float>(i)) * 9);
  std::vector<float> all = x;
  GetParam()->silu(all.data(), 70);
  for (size_t i = 0; i < x.size(); ++i) {
    float one = x[i];
    GetParam()->silu(&one, 1);
    EXPECT_EQ(std::bit_cast<uint32_t>(one), std::bit_cast<uint32_t>(all[i])) << i;
  }
}

TEST_P(ElementwiseTest, WidenIsExactAtAnyAddressAndLength) {
  std::vector<std::byte> bytes(2 * 70 + 1);
  for (int n = 0; n <= 70; ++n) {
    for (int i = 0; i < n; ++i) {
      const auto bits = static_cast<uint16_t>(i * 977 + n * 13);
      std::memcpy(bytes.data() + 1 + 2 * i, &bits, 2);
    }
    std::vector<float> out(static_cast<size_t>(n) + 1, -1.0f);
    GetParam()->widen(bytes.data() + 1, n, out.data());
    for (int i = 0; i < n; ++i) {
      const auto bits = static_cast<uint16_t>(i * 977 + n * 13);
      EXPECT_EQ(std::bit_cast<uint32_t>(out[static_cast<size_t>(i)]),
                std::bit_cast<uint32_t>(ToFloat(BF16{bits})));
    }
    EXPECT_EQ(out.back(), -1.0f);
  }
}

// All upper halves with lower halves around the rounding points.
TEST_P(ElementwiseTest, NarrowRoundsAsToBF16) {
  std::vector<float> in;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      in.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  std::vector<BF16> out(in.size());
  GetParam()->narrow(in.data(), static_cast<int64_t>(in.size()), out.data());
  for (size_t i = 0; i < in.size(); ++i) {
    ASSERT_EQ(out[i].bits, ToBF16(in[i]).bits) << std::hex << std::bit_cast<uint32_t>(in[i]);
  }
  for (int n = 0; n <= 40; ++n) {
    std::vector<BF16> some(static_cast<size_t>(n) + 1, BF16{0x1234});
    GetParam()->narrow(in.data() + 60000, n, some.data());
    for (int i = 0; i < n; ++i) {
      EXPECT_EQ(some[static_cast<size_t>(i)].bits, out[static_cast<size_t>(60000 + i)].bits);
    }
    EXPECT_EQ(some.back().bits, 0x1234);
  }
}

// One addition after another, whatever the length; -0 does not survive.
TEST_P(ElementwiseTest, SumRowsAddsInOrder) {
  constexpr int64_t kStride = 1203;
  constexpr int32_t kRows = 12;
  std::vector<float> rows(kStride * kRows);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i)) * 9;
  for (size_t i = 0; i < rows.size(); i += 3) rows[i] = -0.0f;
  const std::vector<int32_t> which = {3, 11, 0, 7, 5, 4, 9, 10, 1, 2, 6};
  for (const int64_t n : {1, 15, 16, 31, 128, 129, 300, 512, 1203}) {
    for (const int32_t num : {0, 1, 2, 10, 11}) {
      std::vector<float> out(static_cast<size_t>(n) + 1, -1.0f);
      GetParam()->sum_rows({.rows = rows.data(),
                            .stride = kStride,
                            .which = which.data(),
                            .num = num,
                            .next = which.data() + 3,
                            .num_next = num / 2,
                            .n = n,
                            .out = out.data()});
      for (int64_t o = 0; o < n; ++o) {
        float sum = 0;
        for (int32_t i = 0; i < num; ++i) {
          sum += rows[static_cast<size_t>(which[static_cast<size_t>(i)] * kStride + o)];
        }
        ASSERT_EQ(std::bit_cast<uint32_t>(out[static_cast<size_t>(o)]),
                  std::bit_cast<uint32_t>(sum))
            << n << " " << num << " " << o;
      }
      ASSERT_EQ(out.back(), -1.0f);
    }
  }
}

}  // namespace
}  // namespace banyan::expert
