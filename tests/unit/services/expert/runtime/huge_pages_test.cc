#include "services/expert/runtime/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

namespace banyan::expert {
namespace {

TEST(HugePagesTest, ATmpfsHasThemWhereItIsMountedSo) {
  const std::string mounts =
      "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,huge=no\n"
      "25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684084k\n"
      "30 25 0:27 / /dev/shm rw,nosuid shared:7 master:2 - tmpfs shm rw,size=64k,huge=advise\n"
      "31 25 0:28 / /x rw\n"
      "32 25 0:29\n";
  EXPECT_FALSE(MountAllowsHugePages("0:23", mounts));
  EXPECT_TRUE(MountAllowsHugePages("0:27", mounts));
  // Not a tmpfs, cut short, unknown: the pages themselves are asked.
  for (const char* device : {"254:0", "0:28", "0:29", "0:2", ""}) {
    EXPECT_TRUE(MountAllowsHugePages(device, mounts)) << device;
  }
  EXPECT_TRUE(MountAllowsHugePages("0:23", ""));
  EXPECT_TRUE(MayHaveHugePages("/no/such/folder"));
}

TEST(HugePagesTest, SmallPagesAreNone) {
  constexpr size_t kBytes = size_t{8} << 20;
  void* const memory =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(madvise(memory, kBytes, MADV_NOHUGEPAGE), 0);
  std::memset(memory, 1, kBytes);
  EXPECT_EQ(HugePageBytes(memory, kBytes), 0u);
  munmap(memory, kBytes);
}

}  // namespace
}  // namespace banyan::expert
