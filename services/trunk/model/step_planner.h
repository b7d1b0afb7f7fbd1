// Turns the engine's step into the operations' plan: once per step, used in every layer.
#pragma once

#include <cstdint>
#include <vector>

#include "services/trunk/engine/step.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

class StepPlanner {
 public:
  struct Options {
    int32_t max_rows = 0;
    int32_t num_slots = 0;
    int32_t num_pages = 0;
    int32_t max_position = 0;
    int32_t vocab_size = 0;
    int32_t rotary_dim = 0;
    double rope_theta = 0;
  };

  // Sets StepTableBytes aside (common/plan/decoder_memory.h); Build allocates nothing.
  explicit StepPlanner(const Options& options);

  // A step against the contract of step.h or beyond the options is our own bug (CHECK). The plan is
  // valid until the next call.
  const StepPlan& Build(const Step& step);

 private:
  void AddSegment(const StepSegment& segment);
  void AddRow(int32_t token_id, int32_t position);

  Options options_;
  std::vector<double> inv_freq_;  // [rotary_dim / 2]
  std::vector<PlanSegment> segments_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> page_ids_;
  std::vector<float> rope_cos_;
  std::vector<float> rope_sin_;
  std::vector<int32_t> slot_rows_;  // [num_slots]: of this step, to find a slot used twice
  StepPlan plan_;
};

}  // namespace banyan::trunk
