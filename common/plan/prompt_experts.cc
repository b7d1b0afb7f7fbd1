#include "common/plan/prompt_experts.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/prefill_halves.h"

namespace banyan {
namespace {

// Links count as the fastest of these that they reach, a fifth aside. GB/s.
constexpr double kLinks[] = {50, 25, 12.5, 6.25};
constexpr double kReached = 0.8;

// How fast a host goes through its part of a pool for such prompts while a device reads from the
// same memory, GB/s of weights (docs/performance.md, *Experts of long prompts*). The longest are
// not followed where that would take the device longer than a host needs for all experts of 512
// rows, which is what a step has while a sequence decodes.
using HostRates = std::array<double, kPromptClassTokens.size()>;
constexpr HostRates kHost4Bits = {54, 36, 20.5, 12.5};
constexpr HostRates kHost8Bits = {73, 50, 33, 33};
constexpr HostRates kHost16Bits = {89, 75, 55, 55};

const HostRates& HostRatesOf(PoolFormat format) {
  switch (format) {
    case PoolFormat::kBF16:
      return kHost16Bits;
    case PoolFormat::kInt8:
      return kHost8Bits;
    case PoolFormat::kNF4:
    case PoolFormat::kInt4:
      break;
  }
  return kHost4Bits;
}

}  // namespace

absl::StatusOr<PromptExpertShare> ParsePromptExperts(std::string_view text,
                                                     const PromptExpertFacts& facts) {
  PromptExpertShare share;
  if (text == "off") return share;
  if (text == "auto") {
    share.chosen = facts.on_gpu && facts.tensor_parallel == 1 && facts.in_memory &&
                   facts.bf16_rows && !facts.halves_asked;
    return share;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), share.percent);
  if (error != std::errc() || end != text.data() + text.size() || share.percent < 1 ||
      share.percent > 100) {
    return InvalidArgumentF("--prompt_experts '{}': expected auto, off or 1 to 100 percent",
                            Printable(text));
  }
  if (facts.tensor_parallel > 1) {
    return InvalidArgumentF("--prompt_experts {}: not with --tensor_parallel {}", share.percent,
                            facts.tensor_parallel);
  }
  if (!facts.in_memory) {
    return InvalidArgumentF(
        "--prompt_experts {}: every expert must be at a unix: address, with --expert_transport "
        "auto",
        share.percent);
  }
  if (!facts.bf16_rows) {
    return InvalidArgumentF("--prompt_experts {}: not with --expert_activations f32",
                            share.percent);
  }
  if (facts.halves_asked) {
    return InvalidArgumentF("--prompt_experts {}: not with steps that run as halves",
                            share.percent);
  }
  return share;
}

absl::StatusOr<PromptSteps> ParsePromptSteps(std::string_view prefill_halves,
                                             std::string_view prompt_experts,
                                             PromptExpertFacts facts) {
  PromptSteps steps;
  ASSIGN_OR_RETURN(steps.halved_rows,
                   ParsePrefillHalves(prefill_halves, facts.on_gpu, facts.in_memory));
  facts.halves_asked = prefill_halves != "auto" && steps.halved_rows > 0;
  ASSIGN_OR_RETURN(steps.experts, ParsePromptExperts(prompt_experts, facts));
  if (steps.experts.any()) steps.halved_rows = 0;
  return steps;
}

int32_t PromptExpertsOf(const PromptExpertCounts& counts, int32_t prompt_tokens,
                        int32_t long_prompt_tokens) {
  if (prompt_tokens < std::max(1, long_prompt_tokens)) return 0;
  int32_t count = counts[0];
  for (size_t i = 1; i < counts.size() && prompt_tokens >= kPromptClassTokens[i]; ++i) {
    count = counts[i];
  }
  return count;
}

PromptExpertCounts GivenPromptExperts(int32_t num_experts, int32_t percent) {
  PromptExpertCounts counts;
  counts.fill(std::max(1, num_experts * percent / 100));
  return counts;
}

PromptExpertCounts ChosenPromptExperts(int32_t num_experts, PoolFormat format,
                                       double bytes_per_second) {
  PromptExpertCounts counts = {};
  const auto link = std::find_if(std::begin(kLinks), std::end(kLinks), [&](double gbps) {
    return bytes_per_second >= kReached * gbps * 1e9;
  });
  if (link == std::end(kLinks)) return counts;
  // Both are done at the same time.
  const HostRates& host = HostRatesOf(format);
  for (size_t i = 0; i < counts.size(); ++i) {
    counts[i] = static_cast<int32_t>(num_experts * *link / (*link + host[i]));
  }
  return counts;
}

}  // namespace banyan
