#include "services/trunk/ops/cpu/cpu_tier.h"

#include <gtest/gtest.h>

#include <string>

namespace banyan::trunk::cpu {
namespace {

TEST(CpuTierTest, ScalarIsAlwaysThereAndAutoPicksTheBest) {
  ASSERT_TRUE(FindKernels("scalar").ok());
  const auto best = FindKernels("auto");
  ASSERT_TRUE(best.ok());
  for (const char* name : {"amx", "avx512", "avx2", "scalar"}) {
    const auto tier = FindKernels(name);
    if (!tier.ok()) {
      EXPECT_EQ(tier.status().code(), absl::StatusCode::kUnimplemented);
      continue;
    }
    EXPECT_EQ(*tier, *best) << name;
    break;
  }
}

TEST(CpuTierTest, UnknownNames) {
  const auto tier = FindKernels("amx\n");
  EXPECT_EQ(tier.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(tier.status().message()),
            "cpu tier 'amx\\x0a': expected auto, scalar, avx2, avx512 or amx");
}

}  // namespace
}  // namespace banyan::trunk::cpu
