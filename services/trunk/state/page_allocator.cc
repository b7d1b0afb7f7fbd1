#include "services/trunk/state/page_allocator.h"

#include "common/base/check.h"

namespace banyan::trunk {

PageAllocator::PageAllocator(int32_t num_pages) {
  CHECK(num_pages >= 0);
  taken_.resize(static_cast<size_t>(num_pages), false);
  free_.reserve(static_cast<size_t>(num_pages));
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

bool PageAllocator::Allocate(int32_t count, std::vector<int32_t>* pages) {
  CHECK(count >= 0);
  if (count > num_free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t page = free_.back();
    free_.pop_back();
    taken_[static_cast<size_t>(page)] = true;
    pages->push_back(page);
  }
  return true;
}

void PageAllocator::Free(std::vector<int32_t>* pages) {
  for (size_t i = pages->size(); i > 0; --i) {
    const int32_t page = (*pages)[i - 1];
    CHECK(page >= 0 && page < num_pages());
    CHECK(taken_[static_cast<size_t>(page)]);
    taken_[static_cast<size_t>(page)] = false;
    free_.push_back(page);
  }
  pages->clear();
}

}  // namespace banyan::trunk
