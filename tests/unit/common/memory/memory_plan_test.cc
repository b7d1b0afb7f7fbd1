#include "common/memory/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <string>

#include "common/base/byte_size.h"
#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(MemoryPlanTest, AddsUpAndRefusesWithTheTable) {
  MemoryPlan plan("host memory", 3000, "--host_budget");
  plan.Add("weights", 1000);
  plan.Add("pages", 1500, "3 pages");
  EXPECT_TRUE(plan.Check().ok());
  EXPECT_EQ(plan.total_bytes(), 2500u);
  EXPECT_EQ(plan.left_bytes(), 500u);
  plan.Add("scratch", 501);
  EXPECT_EQ(plan.left_bytes(), 0u);
  const absl::Status status = plan.Check();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("host memory: 2.93 KiB needed, 2.93 KiB granted (--host_budget)"),
                    HasSubstr("weights"), HasSubstr("3 pages"), HasSubstr("501 B")));
}

TEST(MemoryPlanTest, ThisMachineHasMemory) {
  EXPECT_GT(AvailableHostMemory(), 1u << 20);
  EXPECT_GE(TotalHostMemory(), AvailableHostMemory());
}

class CgroupMemoryTest : public testing::Test {
 protected:
  void File(const std::string& name, const std::string& text) {
    const std::filesystem::path path = dir_.File(name);
    std::filesystem::create_directories(path.parent_path());
    test::WriteFile(path.string(), text);
  }
  std::optional<uint64_t> Left() {
    return CgroupMemoryLeft(dir_.File("self_cgroup"), dir_.File("sys"));
  }
  std::optional<uint64_t> Limit() {
    return CgroupMemoryLimit(dir_.File("self_cgroup"), dir_.File("sys"));
  }
  test::TempDir dir_;
};

TEST_F(CgroupMemoryTest, NoLimit) {
  EXPECT_EQ(Left(), std::nullopt);
  File("self_cgroup", "0::/a\n");
  File("sys/a/memory.max", "max\n");
  File("sys/a/memory.current", "4096\n");
  EXPECT_EQ(Left(), std::nullopt);
  EXPECT_EQ(Limit(), std::nullopt);
}

TEST_F(CgroupMemoryTest, TheTightestOnThePath) {
  File("self_cgroup", "0::/a/b\n");
  File("sys/a/memory.max", "1000\n");
  File("sys/a/memory.current", "700\n");
  File("sys/a/b/memory.max", "500\n");
  File("sys/a/b/memory.current", "100\n");
  EXPECT_EQ(Left(), 300u);
  File("sys/a/b/memory.current", "600\n");
  EXPECT_EQ(Left(), 0u);
  EXPECT_EQ(Limit(), 500u);
}

TEST_F(CgroupMemoryTest, FilePagesGiveWay) {
  File("self_cgroup", "0::/a\n");
  File("sys/a/memory.max", "1000\n");
  File("sys/a/memory.current", "900\n");
  File("sys/a/memory.stat", "anon 200\nfile 700\nactive_file 100\ninactive_file 600\n");
  EXPECT_EQ(Left(), 700u);
  File("sys/a/memory.stat", "inactive_file 5000\n");  // counted a little later than the rest
  EXPECT_EQ(Left(), 1000u);
}

TEST_F(CgroupMemoryTest, Version1) {
  File("self_cgroup", "12:cpu,cpuacct:/a\n5:memory:/a/b\n1:name=systemd:/x\n0::/\n");
  File("sys/memory/a/memory.limit_in_bytes", "2000\n");
  File("sys/memory/a/memory.usage_in_bytes", "500\n");
  File("sys/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  File("sys/memory/a/b/memory.usage_in_bytes", "400\n");
  EXPECT_EQ(Limit(), 2000u);
  EXPECT_EQ(Left(), 1500u);
  File("sys/memory/a/b/memory.limit_in_bytes", "1000\n");
  File("sys/memory/a/b/memory.stat", "inactive_file 50\ntotal_inactive_file 100\n");
  EXPECT_EQ(Limit(), 1000u);
  EXPECT_EQ(Left(), 700u);
}

TEST_F(CgroupMemoryTest, Version1InsideAContainer) {
  File("self_cgroup", "5:memory:/docker/0123abcd\n");
  File("sys/memory/memory.limit_in_bytes", "1000\n");
  File("sys/memory/memory.usage_in_bytes", "250\n");
  EXPECT_EQ(Left(), 750u);
  EXPECT_EQ(Limit(), 1000u);
}

TEST_F(CgroupMemoryTest, InsideAContainerTheMountPointIsItsGroup) {
  File("sys/memory.max", "1000\n");
  File("sys/memory.current", "250\n");
  for (const char* path : {"0::/\n", "0::/outside/name\n"}) {
    File("self_cgroup", path);
    EXPECT_EQ(Left(), 750u) << path;
  }
}

TEST(ByteSizeTest, ReadsSizes) {
  const auto parsed = [](std::string_view text) { return ParseByteSize(text).value_or(~0ull); };
  EXPECT_EQ(parsed("0"), 0u);
  EXPECT_EQ(parsed("1048576"), 1048576u);
  EXPECT_EQ(parsed("17B"), 17u);
  EXPECT_EQ(parsed("8GiB"), uint64_t{8} << 30);
  EXPECT_EQ(parsed("1.5MiB"), 1572864u);
  EXPECT_EQ(parsed("512MB"), 512000000u);
  EXPECT_EQ(parsed("2TiB"), uint64_t{2} << 40);
  for (const char* bad :
       {"", "GiB", "-1", "8 GiB", "8gib", "1e3", "nan", "inf", "8GiBx", "0x10", "99999999999TiB"}) {
    EXPECT_EQ(ParseByteSize(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ByteSizeTest, WritesThreeDigits) {
  EXPECT_EQ(FormatByteSize(0), "0 B");
  EXPECT_EQ(FormatByteSize(1023), "1023 B");
  EXPECT_EQ(FormatByteSize(1536), "1.50 KiB");
  EXPECT_EQ(FormatByteSize(uint64_t{21} << 20), "21.0 MiB");
  EXPECT_EQ(FormatByteSize(uint64_t{812} << 30), "812 GiB");
}

}  // namespace
}  // namespace banyan
