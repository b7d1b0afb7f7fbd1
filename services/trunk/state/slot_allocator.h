// Recurrent-state slot ids: one for each running sequence.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "services/trunk/state/page_allocator.h"

namespace banyan::trunk {

// Ids 0..num_slots-1. Thread-compatible.
class SlotAllocator {
 public:
  explicit SlotAllocator(int32_t num_slots) : ids_(num_slots) {}

  int32_t num_slots() const { return ids_.num_pages(); }
  int32_t num_free() const { return ids_.num_free(); }
  int32_t num_used() const { return ids_.num_used(); }

  // Nothing when every slot is taken.
  std::optional<int32_t> Allocate() {
    one_.clear();
    if (!ids_.Allocate(1, &one_)) return std::nullopt;
    return one_.front();
  }

  // A slot that is not taken is our own bug (CHECK).
  void Free(int32_t slot) {
    one_.assign(1, slot);
    ids_.Free(&one_);
  }

 private:
  PageAllocator ids_;  // the same bookkeeping
  std::vector<int32_t> one_;
};

}  // namespace banyan::trunk
