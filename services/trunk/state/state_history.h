// Positions that a sequence's recurrent state can go back to: tokens that turn out wrong
// (speculative decoding) are taken out of it as if they had never come. Keys and values need no
// such thing, since a position is written again before it is read.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/trunk/ops/ops.h"
#include "services/trunk/state/recurrent_state.h"

namespace banyan::trunk {

// Owned by the engine's thread. Copies are queued with the steps around them, in order.
class StateHistory {
 public:
  // Slots [first_spare, first_spare + num_spares) of `state` hold the copies. Both are borrowed.
  StateHistory(const RecurrentState* state, int32_t first_spare, int32_t num_spares,
               Backend* backend);

  // Keeps what `slot` holds, which is its sequence's first `position` tokens. A copy of the same
  // position is replaced. kResourceExhausted: no spare slot is left.
  absl::Status Commit(int32_t slot, int32_t position);

  // Brings back the latest copy at or before `position`; copies after it are dropped, it stays.
  // Returns its position: tokens from there on are to be computed again. kNotFound: there is none.
  absl::StatusOr<int32_t> RollBack(int32_t slot, int32_t position);

  // Drops the slot's copies: those before `position`, or all.
  void ForgetBefore(int32_t slot, int32_t position);
  void Forget(int32_t slot);

 private:
  struct Copy {
    int32_t slot = 0;
    int32_t position = 0;
    int32_t spare = 0;
  };

  template <typename Predicate>
  void Drop(const Predicate& predicate);

  const RecurrentState* const state_;
  Backend* const backend_;
  std::vector<Copy> copies_;
  std::vector<int32_t> spares_;  // free
};

}  // namespace banyan::trunk
