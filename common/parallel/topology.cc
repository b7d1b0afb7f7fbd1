#include "common/parallel/topology.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string_view>

namespace banyan {
namespace {

// Reads whitespace-separated words of a small file; empty when it cannot be read.
std::vector<std::string> Words(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> words;
  std::string word;
  while (in >> word) words.push_back(word);
  return words;
}

std::optional<double> Number(const std::string& text) {
  std::istringstream in(text);
  double value = 0;
  if (!(in >> value) || !in.eof()) return std::nullopt;
  return value;
}

// Microseconds per period over the period; nullopt for "max", -1 and anything unreadable.
std::optional<double> Ratio(const std::string& quota, const std::string& period) {
  const std::optional<double> q = Number(quota);
  const std::optional<double> p = Number(period);
  if (!q || !p || *q <= 0 || *p <= 0) return std::nullopt;
  return *q / *p;
}

std::optional<double> QuotaOfDirectory(const std::string& directory) {
  const std::vector<std::string> v2 = Words(directory + "/cpu.max");
  if (v2.size() == 2) return Ratio(v2[0], v2[1]);
  const std::vector<std::string> quota = Words(directory + "/cpu.cfs_quota_us");
  const std::vector<std::string> period = Words(directory + "/cpu.cfs_period_us");
  if (quota.size() == 1 && period.size() == 1) return Ratio(quota[0], period[0]);
  return std::nullopt;
}

void KeepSmaller(const std::optional<double>& candidate, std::optional<double>* smallest) {
  if (candidate && (!*smallest || *candidate < **smallest)) *smallest = candidate;
}

}  // namespace

std::vector<int> AffinityCpus() {
  std::vector<int> cpus;
  // A machine may have more CPUs than a cpu_set_t holds: grow until the kernel accepts the size.
  for (int capacity = CPU_SETSIZE; capacity <= (1 << 20); capacity *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(capacity));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(capacity));
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; ok && cpu < capacity; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (ok) break;
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

std::optional<double> CgroupCpuQuota(const std::string& proc_cgroup_file,
                                     const std::string& cgroup_root) {
  std::optional<double> smallest;
  std::ifstream in(proc_cgroup_file);
  std::string line;
  // Lines are "id:controllers:path"; version 2 has id 0 and no controllers.
  while (std::getline(in, line)) {
    const size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    std::string mount = cgroup_root;
    if (!controllers.empty()) {
      const std::string list = "," + controllers + ",";
      if (list.find(",cpu,") == std::string::npos) continue;
      mount += "/" + controllers;
    }
    // The path as seen from outside a container may not exist inside: then its parents do, up to
    // the mount point, which is the container's own group.
    while (true) {
      if (path == "/") path.clear();
      KeepSmaller(QuotaOfDirectory(mount + path), &smallest);
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path.resize(slash == std::string::npos ? 0 : slash);
    }
  }
  return smallest;
}

std::optional<double> CgroupCpuQuota() {
  return CgroupCpuQuota("/proc/self/cgroup", "/sys/fs/cgroup");
}

int UsableCpuCount() {
  int count = static_cast<int>(AffinityCpus().size());
  if (const std::optional<double> quota = CgroupCpuQuota()) {
    // Beyond any machine the quota says nothing; the cap keeps the conversion defined.
    count = std::min(count, static_cast<int>(std::ceil(std::min(*quota, 1e6))));
  }
  return std::max(count, 1);
}

}  // namespace banyan
