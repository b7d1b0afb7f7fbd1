// A model of hashes: logits depend on the sequence's own tokens and on the form (chunked or
// recurrent) each went through, and every clause of the step contract is checked on the way.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "services/trunk/engine/forward_pass.h"

namespace banyan::trunk {

// A broken contract is a CHECK; state mixed up between sequences is a wrong token. Keeps what real
// state would hold: tokens by slot and by page. Not thread-safe, as ForwardPass.
class FakeForwardPass final : public ForwardPass {
 public:
  explicit FakeForwardPass(const Limits& limits);

  const Limits& limits() const override { return limits_; }
  absl::Status Forward(const Step& step) override;
  absl::Status RunHead(const HeadQuery& query) override;
  absl::Status Fault() override { return fault; }
  // As if each step read one byte.
  uint64_t weight_bytes_read() const override { return static_cast<uint64_t>(num_steps_); }

  // The logits for the token after `tokens`, of which the first `prompt_tokens` are the prompt.
  static void Logits(std::span<const int32_t> tokens, int32_t prompt_tokens,
                     std::span<float> logits);

  // Called on the engine's thread before the step is looked at; an error fails the step, leaving
  // the state of its sequences undefined. Set before the engine starts.
  std::function<absl::Status(const Step&)> on_forward;
  // May change the logits of a row, whose sequence's tokens are given, or fail the call.
  std::function<absl::Status(std::span<const int32_t> tokens, std::span<float> logits)> on_logits;

  // What Fault says. The engine's thread once it has started.
  absl::Status fault;

  int64_t num_steps() const { return num_steps_; }
  int32_t most_logits_rows() const { return most_logits_rows_; }  // of one call
  // Of all calls so far.
  int64_t num_full_rows() const { return num_full_rows_; }
  int64_t num_top_rows() const { return num_top_rows_; }
  int64_t num_head_runs() const { return num_head_runs_; }

 private:
  struct SlotState {
    std::vector<int32_t> tokens;
    std::vector<uint64_t> hashes;  // after each token
    bool defined = false;
    bool prompt_over = false;  // nothing chunked may follow
  };

  absl::Status LogitsOfRow(int32_t row, std::span<float> logits) const;
  void CheckStep(const Step& step);
  void CheckContinues(const StepSegment& segment);

  const Limits limits_;
  std::vector<SlotState> slots_;
  std::vector<std::vector<int32_t>> pages_;  // [num_pages][kPageTokens], -1: nothing
  int64_t last_step_id_ = -1;
  int64_t num_steps_ = 0;
  int32_t most_logits_rows_ = 0;
  int64_t num_full_rows_ = 0;
  int64_t num_top_rows_ = 0;
  int64_t num_head_runs_ = 0;
  // Of the last step, by row.
  std::vector<int32_t> row_slots_;
  std::vector<int32_t> row_positions_;
};

}  // namespace banyan::trunk
