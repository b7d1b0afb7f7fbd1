// Which routed experts of long prompts the trunk computes itself (docs/adr/prompt-experts.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/quant/pool_format.h"

namespace banyan {

// Prompts are long from so many tokens on, and longer ones have more of their experts computed
// there: a host takes the longer for an expert the more rows it has, bringing it to the device
// takes as long as ever. 512 rows of ten experts each use nearly all of a layer's 512.
inline constexpr std::array<int32_t, 4> kPromptClassTokens = {512, 1024, 2048, 4096};
inline constexpr int32_t kLongPromptTokens = kPromptClassTokens[0];

// Experts [0, n) of each layer, for prompts of each of these lengths; ascending.
using PromptExpertCounts = std::array<int32_t, kPromptClassTokens.size()>;

// Of a prompt of so many tokens, where those from `long_prompt_tokens` on are long.
int32_t PromptExpertsOf(const PromptExpertCounts& counts, int32_t prompt_tokens,
                        int32_t long_prompt_tokens);

// --prompt_experts: none, so many hundredths of each layer's, or what suits the device.
struct PromptExpertShare {
  int32_t percent = 0;
  bool chosen = false;  // by us: none where it cannot be done

  bool any() const { return chosen || percent > 0; }
};

// What "auto" depends on.
struct PromptExpertFacts {
  bool on_gpu = false;
  int32_t tensor_parallel = 1;
  bool in_memory = false;     // all experts' calls go through shared memory
  bool bf16_rows = false;     // to the experts
  bool halves_asked = false;  // --prefill_halves has a number
};

// "auto" (chosen on one GPU that shares memory with all experts and sends them bf16, unless steps
// are to run as halves, else none), "off", or 1 to 100. kInvalidArgument names the flag, and what
// it cannot go with.
absl::StatusOr<PromptExpertShare> ParsePromptExperts(std::string_view text,
                                                     const PromptExpertFacts& facts);

// How steps of prompts run: as halves (prefill_halves.h), or undivided with experts of our own.
struct PromptSteps {
  int32_t halved_rows = 0;
  PromptExpertShare experts;
};
// Of --prefill_halves and --prompt_experts; facts.halves_asked is said by the first. Halves that
// are asked for come before experts that are not, and these before halves that are not. Errors of
// ParsePrefillHalves, ParsePromptExperts.
absl::StatusOr<PromptSteps> ParsePromptSteps(std::string_view prefill_halves,
                                             std::string_view prompt_experts,
                                             PromptExpertFacts facts);

// So many hundredths of `num_experts`, one at least, whatever the length.
PromptExpertCounts GivenPromptExperts(int32_t num_experts, int32_t percent);

// For a device that reads host memory at so many bytes a second, which count in wide steps, so that
// a start is as the one before; all 0 for a link that is too slow. Infinity: the most that it can
// be.
PromptExpertCounts ChosenPromptExperts(int32_t num_experts, PoolFormat format,
                                       double bytes_per_second);

inline constexpr char kPromptExpertsHelp[] =
    "Routed experts that the trunk computes for long prompts, with weights from the experts' pool "
    "in this machine's memory: percent of each layer's, off, or auto (on one GPU with all experts "
    "on this machine what suits its link, else off)";

}  // namespace banyan
