// KV page ids of one pool: who has which is the callers' business, that nobody shares is ours.
#pragma once

#include <cstdint>
#include <vector>

namespace banyan::trunk {

// Ids 0..num_pages-1. Thread-compatible. Taking and returning cost O(pages); no memory is allocated
// after construction beyond the callers' vectors.
class PageAllocator {
 public:
  explicit PageAllocator(int32_t num_pages);

  int32_t num_pages() const { return static_cast<int32_t>(taken_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_used() const { return num_pages() - num_free(); }

  // Appends `count` pages to `pages`, or takes none and returns false when fewer are free.
  bool Allocate(int32_t count, std::vector<int32_t>* pages);

  // Returns all of `pages` and empties it. A page that is not taken is our own bug (CHECK).
  void Free(std::vector<int32_t>* pages);

 private:
  std::vector<int32_t> free_;  // a stack: the page freed last is the warmest
  std::vector<bool> taken_;
};

}  // namespace banyan::trunk
