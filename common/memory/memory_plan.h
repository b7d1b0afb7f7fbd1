// Budgets in; a plan, or the table that explains why there is none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace banyan {

// What a process needs of one kind of memory. Thread-compatible.
class MemoryPlan {
 public:
  struct Item {
    std::string name;
    uint64_t bytes = 0;
    std::string note;  // how the bytes come about
  };

  // `memory` names it in messages ("host memory"); `budget_source` says where the budget comes from
  // ("--host_budget", "75 % of 21.3 GiB available").
  MemoryPlan(std::string memory, uint64_t budget_bytes, std::string budget_source);

  void Add(std::string name, uint64_t bytes, std::string note = "");

  uint64_t total_bytes() const;
  uint64_t budget_bytes() const { return budget_bytes_; }
  // Budget less what has been added; 0 when that is more.
  uint64_t left_bytes() const;
  const std::vector<Item>& items() const { return items_; }

  // The same against another budget, or without the items of a name.
  MemoryPlan WithBudget(uint64_t budget_bytes, std::string budget_source) const;
  MemoryPlan Without(std::string_view name) const;

  // One line per item, then total and budget.
  std::string Table() const;

  // kResourceExhausted with the table when the total exceeds the budget.
  absl::Status Check() const;

 private:
  std::string memory_;
  uint64_t budget_bytes_;
  std::string budget_source_;
  std::vector<Item> items_;
};

// One plan_memory line in the log for each item, then plan_memory_total.
void LogMemoryPlan(const MemoryPlan& plan);

// Bytes that the memory limits of the process's cgroup (version 2, and the memory controller of
// version 1) and of its parents still grant: the smallest; nullopt without a limit. File pages that
// nobody used of late give way and count as granted. The arguments are /proc/self/cgroup and
// /sys/fs/cgroup, except in tests.
std::optional<uint64_t> CgroupMemoryLeft(const std::string& proc_cgroup_file,
                                         const std::string& cgroup_root);

// The smallest of those limits themselves.
std::optional<uint64_t> CgroupMemoryLimit(const std::string& proc_cgroup_file,
                                          const std::string& cgroup_root);

// The machine's memory, or the limit of the cgroup if that is less.
uint64_t TotalHostMemory();

// MemAvailable of /proc/meminfo, or what the cgroup still grants if that is less.
// 0 when neither can be read.
uint64_t AvailableHostMemory();

}  // namespace banyan
