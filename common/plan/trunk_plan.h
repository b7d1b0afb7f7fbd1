// How much memory the trunk takes, how long contexts are and how many requests run at once: from
// the model, a budget and whatever limits were given; before anything is allocated. banyan-trunk
// runs it at its start and `banyan plan` without one.
//
// Limits that were not given are chosen. At first the model's whole context, 32 sequences, 512 rows
// a step and KV pages for 32 requests of 4096 tokens each, at least for one whole context. On a GPU
// steps have 4159 rows: two halves of 2048 (docs/adr/two-halves.md) and 63, or undivided 4096, as
// many as experts take in one call (docs/adr/prompt-experts.md); those in which a sequence decodes
// have 512 all the same. While that does not fit, this shrinks, in this order:
//   1. KV pages, down to those of one whole context
//   2. on a GPU rows of a step, to 2111
//   3. on a GPU the context, down to 65536 tokens; then the sequences, to 16 and 8, each with 4159
//      rows or 2111; then with 32768 tokens the same again, and 4 sequences. A prompt whose steps
//      have 512 rows takes twice as long: each reads the experts' weights
//   4. the context, down to 8192 tokens, with 32 sequences and 512 rows again
//   5. rows of a step, by halves down to 128; then sequences, by halves down to 1; then rows to 63
//      more than the sequences, the least that a step needs
//   6. the context again, down to 1024 tokens
// What does not fit then is refused. Experts of long prompts that nobody asked for are planned
// where they pay: each step reads their weights, so it has 512 rows, and no more without them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/memory/memory_plan.h"
#include "common/plan/decoder_memory.h"
#include "common/plan/plan_change.h"
#include "common/plan/prompt_experts.h"
#include "common/plan/tensor_classes.h"
#include "common/plan/trunk_format.h"
#include "common/tensor/dtype.h"

namespace banyan {

inline constexpr int32_t kDefaultSequences = 32;
inline constexpr int32_t kDefaultBatchTokens = 512;
// A step has room for a piece of a prompt, 64 tokens, beside all but one decoding sequence.
inline constexpr int32_t kLeastRowsBesideSequences = 63;

struct TrunkPlanInput {
  int32_t tensor_parallel = 1;  // devices that share the trunk; the model fits them
  // Of one of them.
  TrunkWeightSizes weights;                 // as bf16
  TrunkWeightSizes int8_weights;            // without matrices: there is no such choice
  std::optional<TrunkFormat> trunk_format;  // none: bf16 or, where that does not fit a GPU, int8
  DType kv_dtype = DType::kF32;
  DType expert_activations = DType::kF32;
  uint64_t index_bytes = 0;          // TensorIndexBytes
  bool weights_generated = false;    // --load_format dummy: not mapped from files
  int32_t max_context_tokens = 0;    // 0: what model and memory allow
  int32_t max_sequences = 0;         // 0: chosen
  int32_t max_batch_tokens = 0;      // 0: chosen
  int32_t halved_rows = 0;           // DecoderOptions::halved_rows
  PromptExpertShare prompt_experts;  // any: DecoderOptions::prompt_experts, if it pays
  // What may be used, and what there is now; of each GPU with on_gpu, else of the host.
  uint64_t budget_bytes = 0;     // 0: three quarters of available_bytes, nine tenths of a GPU's
  uint64_t available_bytes = 0;  // 0: not known; then budget_bytes decides alone
  bool on_gpu = false;
  int num_threads = 1;  // of the CPU's operations, on one device
  // Of the same memory and budget: what other services of this machine take of it.
  uint64_t others_bytes = 0;
  std::string others;
};

struct TrunkPlan {
  DecoderOptions decoder;  // max_context_tokens is never 0 here
  int32_t max_sequences = 0;
  int32_t max_batch_tokens = 0;
  int32_t max_mixed_tokens = 0;  // rows of a step in which a sequence decodes
  MemoryPlan memory;             // of one GPU, or of the host with all parts of the trunk
  // What a trunk on GPUs takes of the host besides, pinned memory of all of them included; against
  // no budget.
  std::optional<MemoryPlan> gpu_host = std::nullopt;

  // Requests of so many tokens each that run at once.
  int64_t SequencesOf(int64_t context_tokens) const;
};

// kInvalidArgument: more context than the model has positions, or fewer rows than the sequences
// need. kResourceExhausted with the numbers, the table and each change of one flag that would do:
// the least budget, and for each limit given the largest that fits; `changes`, unless null, gets
// them too.
absl::StatusOr<TrunkPlan> PlanTrunk(const ModelConfig& config, const TrunkPlanInput& input,
                                    std::vector<PlanChange>* changes = nullptr);

}  // namespace banyan
