#include "common/parallel/topology.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <thread>

#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

class CgroupTest : public testing::Test {
 protected:
  void File(const std::string& name, const std::string& text) {
    const std::filesystem::path path = dir_.File(name);
    std::filesystem::create_directories(path.parent_path());
    test::WriteFile(path.string(), text);
  }
  std::optional<double> Quota() {
    return CgroupCpuQuota(dir_.File("self_cgroup"), dir_.File("sys"));
  }
  test::TempDir dir_;
};

TEST_F(CgroupTest, NothingThere) { EXPECT_EQ(Quota(), std::nullopt); }

TEST_F(CgroupTest, Version2TakesTheSmallestOnThePath) {
  File("self_cgroup", "0::/a/b\n");
  File("sys/a/cpu.max", "150000 100000\n");
  File("sys/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(Quota(), 1.5);
  File("sys/a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(Quota(), 0.5);
}

TEST_F(CgroupTest, Version2InsideAContainerReadsTheMountPoint) {
  File("self_cgroup", "0::/outside/name\n");
  File("sys/cpu.max", "200000 100000\n");
  EXPECT_EQ(Quota(), 2.0);
}

TEST_F(CgroupTest, Version1) {
  File("self_cgroup", "5:memory:/m\n4:cpu,cpuacct:/c\n");
  File("sys/cpu,cpuacct/c/cpu.cfs_quota_us", "300000\n");
  File("sys/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Quota(), 3.0);
  File("sys/cpu,cpuacct/c/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(Quota(), std::nullopt);
}

TEST_F(CgroupTest, NonsenseIsNoLimit) {
  File("self_cgroup", "nonsense\n0:\n0::/\n");
  File("sys/cpu.max", "0x 100000 7\n");
  EXPECT_EQ(Quota(), std::nullopt);
  File("sys/cpu.max", "-5 0\n");
  EXPECT_EQ(Quota(), std::nullopt);
}

TEST(TopologyTest, FollowsTheAffinityMask) {
  const std::vector<int> all = AffinityCpus();
  ASSERT_FALSE(all.empty());
  EXPECT_GE(UsableCpuCount(), 1);
  EXPECT_LE(UsableCpuCount(), static_cast<int>(all.size()));
  std::thread([&] {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(all.back(), &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof(set), &set), 0);
    EXPECT_EQ(AffinityCpus(), std::vector<int>{all.back()});
    EXPECT_EQ(UsableCpuCount(), 1);
  }).join();
}

}  // namespace
}  // namespace banyan
