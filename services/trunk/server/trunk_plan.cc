#include "services/trunk/server/trunk_plan.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/base/byte_size.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

constexpr int32_t kTypicalRequestTokens = 4096;
constexpr int32_t kLeastContextTokens = 1024;
constexpr int32_t kMaxLogitsRows = 32;
constexpr uint64_t kGpuRoundingBytes = uint64_t{4} << 20;

int64_t Pages(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

absl::StatusOr<TrunkPlan> PlanTrunk(const ModelConfig& config, const TrunkPlanInput& input,
                                    const Backend& backend) {
  if (input.max_context_tokens > config.max_position_embeddings) {
    return InvalidArgumentF(
        "--max_context_tokens {}: the model has {} positions (max_position_embeddings)",
        input.max_context_tokens, config.max_position_embeddings);
  }
  const bool automatic = input.budget_bytes == 0;
  const uint64_t share =
      input.on_gpu ? input.available_bytes / 10 * 9 : input.available_bytes / 4 * 3;
  const char* const flag = input.on_gpu ? "--vram_budget" : "--host_budget";
  TrunkPlan plan{
      .decoder = {},
      .memory = MemoryPlan(
          input.on_gpu ? "GPU memory of the trunk" : "host memory of the trunk",
          automatic ? share : input.budget_bytes,
          automatic ? fmt::format("{} of {} available; {}", input.on_gpu ? "9/10" : "3/4",
                                  FormatByteSize(input.available_bytes), flag)
                    : flag)};
  const int64_t wanted_context =
      input.max_context_tokens > 0 ? input.max_context_tokens : config.max_position_embeddings;
  const int64_t least_context = input.max_context_tokens > 0
                                    ? wanted_context
                                    : std::min<int64_t>(wanted_context, kLeastContextTokens);
  plan.decoder.trunk_format = input.trunk_format;
  plan.decoder.kv_dtype = input.kv_dtype;
  plan.decoder.max_rows = input.max_batch_tokens;
  plan.decoder.num_slots = input.max_sequences;
  plan.decoder.max_logits_rows = std::min(kMaxLogitsRows, input.max_batch_tokens);
  // Scratch may grow with the context: count the longest.
  plan.decoder.max_context_tokens = static_cast<int32_t>(wanted_context);
  plan.decoder.num_pages = 1;
  const DecoderMemory memory = Decoder::Plan(config, plan.decoder, backend);
  const uint64_t page_bytes = memory.kv_cache_bytes;
  plan.memory.Add("weights", input.weight_bytes,
                  input.trunk_format == TrunkFormat::kInt8 ? "8-bit codes"
                  : input.on_gpu                           ? "copied from the checkpoint"
                                                           : "mapped from the checkpoint");
  if (input.on_gpu) {
    plan.memory.Add("rounding", kGpuRoundingBytes, "tensors to 256 bytes, small ones share blocks");
  }
  plan.memory.Add(
      "recurrent state", memory.recurrent_state_bytes,
      fmt::format("{} slots of {}", plan.decoder.num_slots,
                  FormatByteSize(memory.recurrent_state_bytes /
                                 static_cast<uint64_t>(std::max(1, plan.decoder.num_slots)))));
  plan.memory.Add("activations", memory.activation_bytes + memory.scratch_bytes,
                  fmt::format("{} rows a step", plan.decoder.max_rows));

  // A model without full attention needs no KV memory; pages are counted all the same.
  constexpr int64_t kMostPages = std::numeric_limits<int32_t>::max() / kPageTokens;
  const int64_t fit = page_bytes == 0
                          ? kMostPages
                          : static_cast<int64_t>(std::min<uint64_t>(
                                plan.memory.left_bytes() / page_bytes, uint64_t{kMostPages}));
  const auto add_pages = [&plan, page_bytes](int64_t pages) {
    plan.memory.Add("KV pages", static_cast<uint64_t>(pages) * page_bytes,
                    fmt::format("{} pages of {} tokens, {} each", pages, kPageTokens,
                                FormatByteSize(page_bytes)));
  };
  if (fit < Pages(least_context)) {
    add_pages(Pages(least_context));
    return Annotate(plan.memory.Check(),
                    fmt::format("a context of {} tokens does not fit", least_context));
  }
  const auto context = static_cast<int32_t>(std::min(wanted_context, fit * kPageTokens));
  plan.decoder.max_context_tokens = context;
  plan.decoder.num_pages = static_cast<int32_t>(std::min(
      fit, std::max(Pages(context),
                    input.max_sequences * Pages(std::min(context, kTypicalRequestTokens)))));
  add_pages(plan.decoder.num_pages);
  RETURN_IF_ERROR(plan.memory.Check());
  return plan;
}

}  // namespace banyan::trunk
