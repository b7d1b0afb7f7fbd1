#include "services/trunk/state/state_history.h"

#include <algorithm>

#include "common/base/strings.h"

namespace banyan::trunk {

StateHistory::StateHistory(const RecurrentState* state, int32_t first_spare, int32_t num_spares,
                           Backend* backend)
    : state_(state), backend_(backend) {
  for (int32_t i = num_spares; i > 0; --i) spares_.push_back(first_spare + i - 1);
  copies_.reserve(spares_.size());
}

absl::Status StateHistory::Commit(int32_t slot, int32_t position) {
  for (const Copy& copy : copies_) {
    if (copy.slot != slot || copy.position != position) continue;
    state_->CopySlot(slot, copy.spare, backend_);
    return absl::OkStatus();
  }
  if (spares_.empty()) {
    return StatusF(absl::StatusCode::kResourceExhausted,
                   "recurrent state of slot {} at position {}: all {} copies are in use", slot,
                   position, copies_.size());
  }
  copies_.push_back({slot, position, spares_.back()});
  spares_.pop_back();
  state_->CopySlot(slot, copies_.back().spare, backend_);
  return absl::OkStatus();
}

absl::StatusOr<int32_t> StateHistory::RollBack(int32_t slot, int32_t position) {
  const Copy* best = nullptr;
  for (const Copy& copy : copies_) {
    if (copy.slot != slot || copy.position > position) continue;
    if (best == nullptr || copy.position > best->position) best = &copy;
  }
  if (best == nullptr) {
    return StatusF(absl::StatusCode::kNotFound,
                   "recurrent state of slot {}: no copy at or before position {}", slot, position);
  }
  const int32_t found = best->position;
  state_->CopySlot(best->spare, slot, backend_);
  Drop([&](const Copy& copy) { return copy.slot == slot && copy.position > found; });
  return found;
}

void StateHistory::ForgetBefore(int32_t slot, int32_t position) {
  Drop([&](const Copy& copy) { return copy.slot == slot && copy.position < position; });
}

void StateHistory::Forget(int32_t slot) {
  Drop([&](const Copy& copy) { return copy.slot == slot; });
}

template <typename Predicate>
void StateHistory::Drop(const Predicate& predicate) {
  for (const Copy& copy : copies_) {
    if (predicate(copy)) spares_.push_back(copy.spare);
  }
  copies_.erase(std::remove_if(copies_.begin(), copies_.end(), predicate), copies_.end());
}

}  // namespace banyan::trunk
