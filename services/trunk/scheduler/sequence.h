// One sequence as the scheduler sees it: its ids, how far they are in the model's state, and what
// that state occupies.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "services/trunk/engine/step.h"

namespace banyan::trunk {

// Plain data; owned by the engine, kept by the scheduler from Add to Remove.
struct Sequence {
  Sequence(int64_t sequence_id, std::vector<int32_t> prompt_ids, int32_t max_new)
      : id(sequence_id),
        tokens(std::move(prompt_ids)),
        prompt_tokens(static_cast<int32_t>(tokens.size())),
        max_tokens(prompt_tokens + max_new) {}

  int64_t id;                   // ascending with age: a lower id is older
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  int32_t prompt_tokens;
  int32_t max_tokens;  // prompt and output together never exceed it

  // Owned by the scheduler from here on.
  int32_t computed_tokens = 0;  // in the state: tokens[0, computed_tokens)
  int32_t planned_rows = 0;     // of the step under way
  int32_t slot = -1;            // -1: waiting
  std::vector<int32_t> pages;

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  bool running() const { return slot >= 0; }
  // All but the last generated token are in the state: one row yields the next token.
  bool decoding() const {
    return computed_tokens >= prompt_tokens && computed_tokens + 1 == num_tokens();
  }
  // Every known token is in the state: the last row's logits choose the next.
  bool awaits_token() const { return computed_tokens == num_tokens(); }
};

inline int32_t PagesFor(int32_t num_tokens) { return (num_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace banyan::trunk
