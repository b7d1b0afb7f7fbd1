// What the kernel says of huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace banyan::expert {

// Bytes of the mapping at `data` that are on huge pages: /proc/self/smaps. The kernel walks every
// page for it, 14 ms a GB of small ones.
uint64_t HugePageBytes(const void* data, size_t bytes);

// Whether files of this folder may lie on huge pages: not on a tmpfs mounted without huge=.
bool MayHaveHugePages(const std::string& folder);
// The same of a device ("0:25"), given the lines of /proc/self/mountinfo.
bool MountAllowsHugePages(const std::string& device, const std::string& mountinfo);

}  // namespace banyan::expert
