#include "common/memory/memory_plan.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "common/base/byte_size.h"
#include "common/base/logging.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr char kProcCgroup[] = "/proc/self/cgroup";
constexpr char kCgroupRoot[] = "/sys/fs/cgroup";

std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// Files of a memory cgroup: of version 2, and of the memory controller of version 1, which older
// engines still mount.
struct Hierarchy {
  const char*
      line;  // of /proc/self/cgroup: how the line of this hierarchy begins, after its number
  const char* mount;  // below the root of cgroups
  const char* limit;
  const char* used;
  const char* cache;  // of memory.stat: file pages that give way at once
};
constexpr Hierarchy kHierarchies[] = {
    {"::", "", "/memory.max", "/memory.current", "inactive_file"},
    {":memory:", "/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes",
     "total_inactive_file"},
};
// Version 1 says "no limit" as the largest whole number of pages.
constexpr uint64_t kNoLimit = uint64_t{1} << 62;

// `value` of the cgroup of this process and of each of its parents, up to the mount point: in a
// container that is its own group, and the path in the file is "/" or one of the host. The
// smallest, over both versions.
template <typename Value>
std::optional<uint64_t> SmallestOfGroups(const std::string& proc_cgroup_file,
                                         const std::string& cgroup_root, const Value& value) {
  std::optional<uint64_t> smallest;
  for (const Hierarchy& hierarchy : kHierarchies) {
    std::ifstream file(proc_cgroup_file);
    std::string line;
    std::string path;
    while (std::getline(file, line)) {
      const size_t at = line.find_first_not_of("0123456789");
      if (at != std::string::npos &&
          line.compare(at, std::strlen(hierarchy.line), hierarchy.line) == 0) {
        path = line.substr(at + std::strlen(hierarchy.line));
      }
    }
    while (true) {
      if (path == "/") path.clear();
      const auto here = value(hierarchy, fmt::format("{}{}{}", cgroup_root, hierarchy.mount, path));
      if (here) smallest = std::min(smallest.value_or(*here), *here);
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path.resize(slash == std::string::npos ? 0 : slash);
    }
  }
  return smallest;
}

std::optional<uint64_t> LimitOf(const Hierarchy& hierarchy, const std::string& directory) {
  const std::optional<uint64_t> limit = ReadNumber(directory + hierarchy.limit);
  return limit && *limit < kNoLimit ? limit : std::nullopt;
}

// The value after `key` in a file of "key value" lines; 0 when there is none.
uint64_t ReadField(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string name;
  uint64_t value = 0;
  while (file >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

uint64_t MemAvailable() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  uint64_t kib = 0;
  std::string unit;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return 0;
}

}  // namespace

MemoryPlan::MemoryPlan(std::string memory, uint64_t budget_bytes, std::string budget_source)
    : memory_(std::move(memory)),
      budget_bytes_(budget_bytes),
      budget_source_(std::move(budget_source)) {}

void MemoryPlan::Add(std::string name, uint64_t bytes, std::string note) {
  items_.push_back({std::move(name), bytes, std::move(note)});
}

MemoryPlan MemoryPlan::WithBudget(uint64_t budget_bytes, std::string budget_source) const {
  MemoryPlan out = *this;
  out.budget_bytes_ = budget_bytes;
  out.budget_source_ = std::move(budget_source);
  return out;
}

MemoryPlan MemoryPlan::Without(std::string_view name) const {
  MemoryPlan out = *this;
  std::erase_if(out.items_, [name](const Item& item) { return item.name == name; });
  return out;
}

uint64_t MemoryPlan::total_bytes() const {
  uint64_t total = 0;
  for (const Item& item : items_) total += item.bytes;
  return total;
}

uint64_t MemoryPlan::left_bytes() const {
  const uint64_t total = total_bytes();
  return total < budget_bytes_ ? budget_bytes_ - total : 0;
}

std::string MemoryPlan::Table() const {
  std::string table;
  const auto row = [&table](std::string_view name, uint64_t bytes, std::string_view note) {
    fmt::format_to(std::back_inserter(table), "  {:<22} {:>10}{}{}\n", name, FormatByteSize(bytes),
                   note.empty() ? "" : "   ", note);
  };
  for (const Item& item : items_) row(item.name, item.bytes, item.note);
  row("total", total_bytes(), "");
  row("budget", budget_bytes_, budget_source_);
  return table;
}

absl::Status MemoryPlan::Check() const {
  if (total_bytes() <= budget_bytes_) return absl::OkStatus();
  return StatusF(absl::StatusCode::kResourceExhausted, "{}: {} needed, {} granted ({})\n{}",
                 memory_, FormatByteSize(total_bytes()), FormatByteSize(budget_bytes_),
                 budget_source_, Table());
}

void LogMemoryPlan(const MemoryPlan& plan) {
  for (const MemoryPlan::Item& item : plan.items()) {
    LogInfo("plan_memory",
            {{"item", item.name}, {"bytes", item.bytes}, {"note", LogValue::NonEmpty(item.note)}});
  }
  LogInfo("plan_memory_total",
          {{"bytes", plan.total_bytes()}, {"budget_bytes", plan.budget_bytes()}});
}

std::optional<uint64_t> CgroupMemoryLeft(const std::string& proc_cgroup_file,
                                         const std::string& cgroup_root) {
  return SmallestOfGroups(
      proc_cgroup_file, cgroup_root,
      [](const Hierarchy& hierarchy, const std::string& directory) -> std::optional<uint64_t> {
        const auto limit = LimitOf(hierarchy, directory);
        const auto used = ReadNumber(directory + hierarchy.used);
        if (!limit.has_value() || !used.has_value()) return std::nullopt;
        const uint64_t cache = ReadField(directory + "/memory.stat", hierarchy.cache);
        const uint64_t kept = *used - std::min(*used, cache);
        return *limit > kept ? *limit - kept : 0;
      });
}

std::optional<uint64_t> CgroupMemoryLimit(const std::string& proc_cgroup_file,
                                          const std::string& cgroup_root) {
  return SmallestOfGroups(proc_cgroup_file, cgroup_root, LimitOf);
}

uint64_t TotalHostMemory() {
  const uint64_t total =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return std::min(total, CgroupMemoryLimit(kProcCgroup, kCgroupRoot).value_or(total));
}

uint64_t AvailableHostMemory() {
  const uint64_t available = MemAvailable();
  const std::optional<uint64_t> left = CgroupMemoryLeft(kProcCgroup, kCgroupRoot);
  return left.has_value() ? std::min(available, *left) : available;
}

}  // namespace banyan
