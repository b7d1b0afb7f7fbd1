// CPUs this process may use: affinity mask and cgroup quota.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace banyan {

// CPU numbers in the calling thread's affinity mask, ascending; never empty.
std::vector<int> AffinityCpus();

// CPUs' worth of time granted by the cgroup of this process and its parents (the smallest of
// cpu.max in version 2, cpu.cfs_quota_us / cpu.cfs_period_us in version 1); nullopt when there is
// no limit or no cgroup file system. The arguments are /proc/self/cgroup and /sys/fs/cgroup, except
// in tests.
std::optional<double> CgroupCpuQuota(const std::string& proc_cgroup_file,
                                     const std::string& cgroup_root);
std::optional<double> CgroupCpuQuota();

// Threads worth starting: size of the affinity mask, or the quota rounded up if that is smaller; at
// least 1.
int UsableCpuCount();

}  // namespace banyan
