// Mapped files into memory, with reading ahead where that is of use.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>

namespace banyan {

// Of one load. Asks the kernel to read ahead from the first page on that was not in memory: advice
// looks at every page, which takes as much as a third of the time of mapping cached ones.
// Thread-safe.
class ReadAhead {
 public:
  // Pages that will be populated later. Ranges lie in live mappings (mapped_file.h).
  void Prefetch(std::span<const std::byte> range) const;

  // MappedFile::Populate.
  bool Populate(std::span<const std::byte> range);

  // Whether a page had to be read so far.
  bool from_disk() const { return from_disk_.load(std::memory_order_relaxed); }

 private:
  bool PopulateAndLook(std::span<const std::byte> range);

  std::atomic<bool> from_disk_{false};
};

}  // namespace banyan
