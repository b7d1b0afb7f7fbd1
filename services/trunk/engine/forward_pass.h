// What the engine needs of a model: run a step, then read logits of its rows.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "services/trunk/engine/step.h"

namespace banyan::trunk {

// Owned by the engine's thread. Every result is a function of the sequence's own tokens alone: not
// of the other rows of the step, the number of threads, nor of how the tokens were spread over
// steps.
class ForwardPass {
 public:
  struct Limits {
    int32_t max_rows = 0;         // of one step
    int32_t num_slots = 0;        // recurrent-state slots
    int32_t num_pages = 0;        // KV pages of kPageTokens tokens
    int32_t max_logits_rows = 0;  // of one ComputeLogits call
    int32_t vocab_size = 0;
    int32_t max_position = 0;  // tokens of one sequence
  };
  virtual ~ForwardPass() = default;

  virtual const Limits& limits() const = 0;

  // Runs all layers and updates KV pages and slots. After an error (kUnavailable: experts gone) the
  // state of every sequence of the step is undefined: recompute it from position 0.
  virtual absl::Status Forward(const Step& step) = 0;

  // Logits of rows of the last step: logits [rows.size(), vocab_size] f32, overwritten.
  // At most max_logits_rows rows a call.
  virtual absl::Status ComputeLogits(std::span<const int32_t> rows, std::span<float> logits) = 0;

  // After an error: why no later step can run (the device is lost), or OK if one can.
  virtual absl::Status Fault() = 0;

  // Bytes of weights that all calls so far have read: a matrix counts once for each step (lm_head:
  // for each ComputeLogits) that uses it, however many rows that has; of the embedding the rows
  // looked up.
  virtual uint64_t weight_bytes_read() const = 0;
};

}  // namespace banyan::trunk
