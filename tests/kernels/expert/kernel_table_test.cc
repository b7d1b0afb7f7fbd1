#include "services/expert/kernels/kernel_table.h"

#include <gtest/gtest.h>

#include <string>

namespace banyan::expert {
namespace {

TEST(KernelTableTest, AutoTakesTheFastestTier) {
  EXPECT_STREQ(ChooseKernels("auto", {}).kernels->name, "scalar");
#if defined(__x86_64__)
  EXPECT_STREQ(ChooseKernels("auto", {.avx2 = true}).kernels->name, "avx2");
  EXPECT_STREQ(ChooseKernels("auto", {.avx2 = true, .avx512 = true}).kernels->name, "avx512");
#endif
}

TEST(KernelTableTest, ATierCanBeForced) {
  for (const FfnKernels* kernels : AvailableKernels(ReadCpuFeatures())) {
    EXPECT_EQ(ChooseKernels(kernels->name, ReadCpuFeatures()).kernels, kernels);
  }
}

TEST(KernelTableTest, AMissingTierIsRefused) {
  const KernelChoice choice = ChooseKernels("avx512", {.avx2 = false});
  EXPECT_EQ(choice.kernels, nullptr);
  EXPECT_EQ(choice.error,
            "cpu tier 'avx512': this CPU lacks AVX-512 F, BW, DQ and VL, enabled by the operating "
            "system; it has scalar");
}

TEST(KernelTableTest, AnUnknownTierIsRefused) {
  EXPECT_EQ(ChooseKernels("sse9", {}).error,
            "cpu tier 'sse9': expected auto, scalar, avx2 or avx512");
}

}  // namespace
}  // namespace banyan::expert
