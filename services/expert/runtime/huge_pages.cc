#include "services/expert/runtime/huge_pages.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>

#include "common/base/strings.h"

namespace banyan::expert {
namespace {

std::string TextOf(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

uint64_t HugePageBytes(const void* data, size_t bytes) {
  std::ifstream smaps("/proc/self/smaps");
  const auto first = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = first + bytes;
  uint64_t total = 0;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    uint64_t kib = 0;
    char name[32];
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
      inside = from < end && to > first;
    } else if (inside && std::sscanf(line.c_str(), "%31[A-Za-z_]: %" SCNu64, name, &kib) == 2) {
      const std::string_view field(name);
      if (field == "AnonHugePages" || field == "ShmemPmdMapped" || field == "FilePmdMapped" ||
          field == "Private_Hugetlb" || field == "Shared_Hugetlb") {
        total += kib * 1024;
      }
    }
  }
  return total;
}

bool MayHaveHugePages(const std::string& folder) {
  struct stat info;
  if (::stat(folder.c_str(), &info) != 0) return true;
  // A test mode of the kernel, whatever a mount says.
  const std::string enabled = TextOf("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  if (enabled.find("[force]") != std::string::npos) return true;
  return MountAllowsHugePages(fmt::format("{}:{}", major(info.st_dev), minor(info.st_dev)),
                              TextOf("/proc/self/mountinfo"));
}

// proc(5): ID, parent, device, root, where, options, optional fields, "-", type, source, options of
// the file system, among which the kernel names huge= unless it is never.
bool MountAllowsHugePages(const std::string& device, const std::string& mountinfo) {
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string id, parent, of, type, source, options;
    fields >> id >> parent >> of;
    if (of != device) continue;
    const size_t rest = line.find(" - ");
    if (rest == std::string::npos) continue;
    std::istringstream(line.substr(rest + 3)) >> type >> source >> options;
    return type != "tmpfs" || options.find("huge=") != std::string::npos;
  }
  return true;
}

}  // namespace banyan::expert
