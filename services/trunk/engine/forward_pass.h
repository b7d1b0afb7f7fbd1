// What the engine needs of a model: run a step, then read logits of its rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/base/check.h"
#include "services/trunk/engine/step.h"
#include "services/trunk/sampling/row_math.h"

namespace banyan::trunk {

// What RunHead computes of rows of the last step: all logits of some of them, the highest of
// others.
struct HeadQuery {
  std::span<const int32_t> full_rows;
  float* logits = nullptr;  // out [full_rows.size(), vocab_size], rows `stride` values apart
  int64_t stride = 0;       // from vocab_size on

  std::span<const int32_t> top_rows;
  int32_t num_ids = 0;      // logits of ids below it count, 1 to vocab_size
  int32_t k = 0;            // 1 to max_top_logits, at most num_ids
  std::span<ScoredId> top;  // out [top_rows.size(), k], by ScoresHigher
  // out [top_rows.size()]: 1 if all logits that count are within kLogitBound; else 0, and `top`
  // means nothing.
  std::span<uint8_t> bounded;
};

// Owned by the engine's thread. Every result is a function of the sequence's own tokens alone: not
// of the other rows of the step, the number of threads, nor of how the tokens were spread over
// steps.
class ForwardPass {
 public:
  struct Limits {
    int32_t max_rows = 0;         // of one step
    int32_t num_slots = 0;        // recurrent-state slots
    int32_t num_pages = 0;        // KV pages of kPageTokens tokens
    int32_t max_logits_rows = 0;  // of one RunHead call
    int32_t max_top_logits = 0;   // of one row; 0: all logits or none
    int32_t vocab_size = 0;
    int32_t max_position = 0;  // tokens of one sequence
  };
  virtual ~ForwardPass() = default;

  virtual const Limits& limits() const = 0;

  // Runs all layers and updates KV pages and slots. After an error (kUnavailable: experts gone) the
  // state of every sequence of the step is undefined: recompute it from position 0. A device may
  // still be at the end of the step when this returns; what fails there is RunHead's error.
  virtual absl::Status Forward(const Step& step) = 0;

  // At most max_logits_rows rows a call, full_rows and top_rows together.
  virtual absl::Status RunHead(const HeadQuery& query) = 0;

  // RunHead for all logits of the rows: logits [rows.size(), vocab_size], overwritten.
  absl::Status ComputeLogits(std::span<const int32_t> rows, std::span<float> logits);

  // After an error: why no later step can run (the device is lost), or OK if one can.
  virtual absl::Status Fault() = 0;

  // Bytes of weights that all calls so far have read: a matrix counts once for each step (lm_head:
  // for each product, which may come with the step) that uses it, however many rows that has; of
  // the embedding the rows looked up.
  virtual uint64_t weight_bytes_read() const = 0;
  // The same of routed experts, from the pools of their hosts.
  virtual uint64_t expert_bytes_read() const { return 0; }
};

inline absl::Status ForwardPass::ComputeLogits(std::span<const int32_t> rows,
                                               std::span<float> logits) {
  CHECK(logits.size() == rows.size() * static_cast<size_t>(limits().vocab_size));
  return RunHead({.full_rows = rows,
                  .logits = logits.data(),
                  .stride = limits().vocab_size,
                  .top_rows = {},
                  .top = {},
                  .bounded = {}});
}

}  // namespace banyan::trunk
