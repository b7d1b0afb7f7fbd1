#include "common/metrics/process_metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <ctime>
#include <thread>

namespace banyan {
namespace {

TEST(ProcessMetricsTest, FollowTheProcess) {
  const ProcessUsage before = ReadProcessUsage();
  EXPECT_GE(before.num_threads, 1);
  EXPECT_GE(before.open_fds, 3);
  EXPECT_GT(before.max_fds, before.open_fds);
  EXPECT_GT(before.virtual_bytes, before.resident_bytes);
  const double now = static_cast<double>(time(nullptr));
  EXPECT_LE(before.start_time_seconds, now + 2);
  EXPECT_GT(before.start_time_seconds, now - 3600);

  constexpr size_t kBytes = 32 << 20;
  void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const int fd = open("/dev/null", O_RDONLY);
  ASSERT_GE(fd, 0);
  // CPU time has a grain of 10 ms: use it until it shows.
  ProcessUsage after = ReadProcessUsage();
  while (after.cpu_seconds <= before.cpu_seconds) after = ReadProcessUsage();
  // proc(5): the kernel counts resident pages for each CPU apart and adds them up in batches.
  constexpr int64_t kUncounted = 1 << 20;
  EXPECT_GE(after.resident_bytes,
            before.resident_bytes + static_cast<int64_t>(kBytes) - kUncounted);
  EXPECT_EQ(after.open_fds, before.open_fds + 1);
  close(fd);
  munmap(memory, kBytes);
}

TEST(ProcessMetricsTest, BuildInfoNamesTheBinary) {
  MetricsRegistry registry;
  RegisterBuildInfo("banyan-test", &registry);
  const std::vector<prometheus::MetricFamily> families = registry.Collect();
  ASSERT_EQ(families.size(), 1u);
  EXPECT_EQ(families[0].name, "banyan_build_info");
  ASSERT_EQ(families[0].metric.size(), 1u);
  EXPECT_EQ(families[0].metric[0].gauge.value, 1);
  EXPECT_EQ(families[0].metric[0].label.size(), 3u);
}

}  // namespace
}  // namespace banyan
