// Plain data of one step: the rows that go through the model together, and where their state lies.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace banyan::trunk {

// A run of consecutive tokens of one sequence. A step holds at most one segment per sequence.
struct StepSegment {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  // Position of the first row's token, equal to the tokens already in the sequence's state. 0
  // starts a sequence: its slot's recurrent and convolution state are taken as zero whatever they
  // hold.
  int32_t first_position = 0;
  int32_t slot = 0;  // recurrent-state slot of the sequence
  // KV pages of the sequence in order, enough for first_position + num_rows tokens.
  std::span<const int32_t> pages;
  // Prompt tokens go through the chunked DeltaNet; then first_position is a multiple of
  // kDeltaNetChunkTokens, and so is the end unless it is the end of the prompt. Generated tokens
  // (decoding, or recomputing after a preemption) go through the recurrent form. This makes a
  // sequence's bits independent of how its tokens were spread over steps.
  bool chunked = false;
  // Of these tokens' request, where they are of its prompt; else 0. Some experts of a long prompt's
  // rows are computed elsewhere than those of others, with other bits (docs/adr/prompt-experts.md).
  // Which rows these are is a function of the request alone, so that a token's bits never depend on
  // what else is in its step.
  int32_t prompt_tokens = 0;
};

inline constexpr int32_t kDeltaNetChunkTokens = 64;
inline constexpr int32_t kPageTokens = 64;  // tokens of one KV page

struct Step {
  int64_t step_id = 0;
  std::span<const int32_t> token_ids;     // [num_rows]
  std::span<const StepSegment> segments;  // cover all rows, ascending
  // The requests that join, for the logs of the experts (trace_context.h); mostly empty.
  std::string_view trace = {};
};

}  // namespace banyan::trunk
