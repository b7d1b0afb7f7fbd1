#include "common/io/read_ahead.h"

#include <sys/resource.h>

#include <algorithm>

#include "common/io/mapped_file.h"

namespace banyan {
namespace {

// What is tried before a range is asked for as a whole: little to wait for if it is on the disk.
constexpr size_t kProbeBytes = 64 << 10;

// Of this thread: those that waited for a disk.
long MajorFaults() {
  rusage usage = {};
  ::getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_majflt;
}

}  // namespace

void ReadAhead::Prefetch(std::span<const std::byte> range) const {
  if (from_disk()) MappedFile::Prefetch(range);
}

bool ReadAhead::PopulateAndLook(std::span<const std::byte> range) {
  const long before = MajorFaults();
  const bool done = MappedFile::Populate(range);
  if (MajorFaults() != before) from_disk_.store(true, std::memory_order_relaxed);
  return done;
}

bool ReadAhead::Populate(std::span<const std::byte> range) {
  if (!from_disk()) {
    const size_t probe = std::min(range.size(), kProbeBytes);
    if (!PopulateAndLook(range.first(probe))) return false;
    if (!from_disk()) return PopulateAndLook(range.subspan(probe));
  }
  MappedFile::Prefetch(range);
  return MappedFile::Populate(range);
}

}  // namespace banyan
