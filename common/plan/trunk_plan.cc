#include "common/plan/trunk_plan.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "common/base/byte_size.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/op_scratch.h"
#include "common/plan/prefill_halves.h"
#include "common/plan/prompt_experts.h"
#include "common/plan/tensor_parallel.h"
#include "common/plan/trunk_arena.h"
#include "common/pool/shard.h"
#include "common/quant/packed_expert.h"

namespace banyan {
namespace {

constexpr int32_t kTypicalRequestTokens = 4096;
constexpr int32_t kComfortableContextTokens = 8192;
// What a trunk maps of an int8 pool at the most (prompt_experts.h).
uint64_t MappedExpertBytes(const ModelConfig& config) {
  const int32_t experts = ChosenPromptExperts(config.num_experts, PoolFormat::kInt8,
                                              std::numeric_limits<double>::infinity())
                              .back();
  const int64_t bytes =
      PackedExpertLayoutOf(PoolFormat::kInt8, config.hidden_size, config.moe_intermediate_size)
          .bytes;
  return static_cast<uint64_t>(int64_t{CountMlps(config, MlpKind::kMoe)} * experts * bytes);
}

// On a GPU: what context and sequences may shrink to, in turn, before steps of prompts do.
struct Room {
  int32_t context;
  int32_t least_sequences;
};
constexpr Room kRooms[] = {
    {std::numeric_limits<int32_t>::max(), kDefaultSequences}, {65536, 8}, {32768, 4}};
constexpr int32_t kLeastContextTokens = 1024;
constexpr int32_t kComfortableRows = 128;
constexpr int32_t kMaxLogitsRows = 32;
constexpr int64_t kMostPages = std::numeric_limits<int32_t>::max() / kKvPageTokens;
// The program, its threads and RPC buffers, the tokenizer, a step's samples.
constexpr uint64_t kProcessBytes = uint64_t{96} << 20;
// What the driver keeps for the recorded steps, and of the context beyond what was free before.
constexpr uint64_t kUploadTables = 2;  // of a step, in turn (services/trunk/ops/cuda/step_upload.h)
constexpr uint64_t kGpuGraphBytes = uint64_t{64} << 20;
// Of host memory that a GPU maps: 8.4 MB for 4 GiB, in pages of 4 KiB or 2 MiB (H200).
constexpr uint64_t kMappedBytesPerTableByte = 512;

int64_t Pages(int64_t tokens) { return (tokens + kKvPageTokens - 1) / kKvPageTokens; }

// What is chosen or given, but for the context and its pages.
struct Width {
  int32_t sequences = 0;
  int32_t rows = 0;
};

struct Items {
  std::vector<MemoryPlan::Item> items;
  uint64_t total = 0;

  void Add(std::string name, uint64_t bytes, std::string note) {
    total += bytes;
    items.push_back({std::move(name), bytes, std::move(note)});
  }
};

class Planner {
 public:
  Planner(const ModelConfig& config, const TrunkPlanInput& input)
      : config_(RankConfig(config, input.tensor_parallel)),
        input_(input),
        format_(input.trunk_format.value_or(TrunkFormat::kBf16)),
        weights_(format_ == TrunkFormat::kInt8 ? input.int8_weights : input.weights) {
    const bool automatic = input.budget_bytes == 0;
    const uint64_t share =
        input.on_gpu ? input.available_bytes / 10 * 9 : input.available_bytes / 4 * 3;
    budget_ = automatic ? share : input.budget_bytes;
    source_ = automatic ? fmt::format("{} of {} available; {}", input.on_gpu ? "9/10" : "3/4",
                                      FormatByteSize(input.available_bytes), flag())
                        : flag();
    // Pages of mapped files give way; everything else must be there.
    most_ = std::numeric_limits<uint64_t>::max();
    if (input.available_bytes > 0) {
      const bool mapped = !input.on_gpu && !input.weights_generated;
      most_ = input.available_bytes + (mapped ? weights_.file_bytes : 0);
    }
    if (budget_ > most_) {
      budget_ = most_;
      source_ =
          fmt::format("{} {}, but {} is available", flag(), FormatByteSize(input.budget_bytes),
                      FormatByteSize(input.available_bytes));
    }
  }

  const char* flag() const { return input_.on_gpu ? "--vram_budget" : "--host_budget"; }

  absl::Status CheckLimits() const {
    if (input_.max_context_tokens > config_.max_position_embeddings) {
      return InvalidArgumentF(
          "--max_context_tokens {}: the model has {} positions (max_position_embeddings)",
          input_.max_context_tokens, config_.max_position_embeddings);
    }
    const int32_t sequences = std::max(input_.max_sequences, 1);
    if (input_.max_batch_tokens != 0 &&
        input_.max_batch_tokens < sequences + kLeastRowsBesideSequences) {
      return InvalidArgumentF("--max_batch_tokens {}: expected at least {} for {} sequence(s)",
                              input_.max_batch_tokens, sequences + kLeastRowsBesideSequences,
                              sequences);
    }
    return absl::OkStatus();
  }

  // The plan of the first step of the order in the header that fits the budget.
  std::optional<TrunkPlan> Fit() const {
    const int32_t sequences = input_.max_sequences > 0 ? input_.max_sequences : kDefaultSequences;
    for (const Room& room : kRooms) {
      const int32_t least = input_.max_sequences > 0 ? sequences : room.least_sequences;
      for (int32_t some = sequences; some >= least; some /= 2) {
        for (const Width& width : LargeWidths(some)) {
          if (auto plan = FitWidth(width, LeastContext(room.context))) return plan;
        }
      }
    }
    const std::vector<Width> widths = Widths();
    for (const Width& width : widths) {
      if (auto plan = FitWidth(width, LeastContext(kComfortableContextTokens))) return plan;
    }
    return FitWidth(widths.back(), LeastContext(kLeastContextTokens));
  }

  // What the last step of that order needs.
  uint64_t LeastBytes() const {
    const int32_t least = LeastContext(kLeastContextTokens);
    return Total(Widths().back(), least, Pages(least));
  }

  absl::Status Refusal() const {
    const int32_t least = LeastContext(kLeastContextTokens);
    const Width width = Widths().back();
    const TrunkPlan plan = Describe(width, least, Pages(least));
    return Annotate(plan.memory.Check(), fmt::format("a context of {} tokens does not fit", least));
  }

  uint64_t most_bytes() const { return most_; }

 private:
  // The longest context that fits, `least` at least: the total grows with it.
  std::optional<TrunkPlan> FitWidth(const Width& width, int32_t least) const {
    if (Total(width, least, Pages(least)) > budget_) return std::nullopt;
    int64_t low = Pages(least);
    int64_t high = Pages(WantedContext());
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      if (Total(width, ContextOf(middle), middle) <= budget_) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return MakePlan(width, ContextOf(low));
  }

  int32_t WantedContext() const {
    return input_.max_context_tokens > 0 ? input_.max_context_tokens
                                         : config_.max_position_embeddings;
  }
  int32_t LeastContext(int32_t comfortable) const {
    return input_.max_context_tokens > 0 ? input_.max_context_tokens
                                         : std::min(WantedContext(), comfortable);
  }
  int32_t ContextOf(int64_t pages) const {
    return static_cast<int32_t>(std::min<int64_t>(WantedContext(), pages * kKvPageTokens));
  }

  // Those for prompts on a GPU.
  std::vector<Width> LargeWidths(int32_t sequences) const {
    std::vector<Width> out;
    if (!input_.on_gpu || input_.max_batch_tokens > 0) return out;
    const auto add = [&out, sequences](int32_t rows) {
      if (rows >= sequences + kLeastRowsBesideSequences) out.push_back({sequences, rows});
    };
    if (input_.halved_rows > 0) {
      add(2 * kHalfRows + kLeastRowsBesideSequences);
    } else if (input_.prompt_experts.any()) {
      add(MaxRowsOf(config_));  // undivided
    }
    add(kHalfRows + kLeastRowsBesideSequences);
    return out;
  }

  // From the widest to the narrowest. What was given is kept.
  std::vector<Width> Widths() const {
    const int32_t given_rows = input_.max_batch_tokens;
    const int32_t given = input_.max_sequences;
    const auto least = [](int32_t sequences) { return sequences + kLeastRowsBesideSequences; };
    std::vector<Width> out;
    int32_t sequences = given > 0 ? given : kDefaultSequences;
    if (given == 0 && given_rows > 0) {
      sequences = std::min(sequences, given_rows - kLeastRowsBesideSequences);
    }
    if (given_rows > 0) {
      out.push_back({sequences, given_rows});
    } else {
      int32_t rows = std::max(kDefaultBatchTokens, least(sequences));
      for (; rows / 2 >= std::max(kComfortableRows, least(sequences)); rows /= 2) {
        out.push_back({sequences, rows});
      }
      out.push_back({sequences, rows});
    }
    while (given == 0 && sequences > 1) {
      sequences /= 2;
      const int32_t rows =
          given_rows > 0 ? given_rows : std::min(out.back().rows, kComfortableRows);
      out.push_back({sequences, rows});
    }
    if (given_rows == 0 && out.back().rows > least(sequences)) {
      out.push_back({sequences, least(sequences)});
    }
    return out;
  }

  DecoderOptions OptionsOf(const Width& width, int32_t context, int64_t pages) const {
    return {.max_rows = width.rows,
            .num_slots = width.sequences,
            .num_pages = static_cast<int32_t>(pages),
            .max_logits_rows = std::min(kMaxLogitsRows, width.rows),
            .max_context_tokens = context,
            .trunk_format = format_,
            .kv_dtype = input_.kv_dtype,
            .expert_activations = input_.expert_activations,
            .halved_rows = input_.halved_rows,
            .prompt_experts = input_.prompt_experts.any(),
            .tensor_parallel = input_.tensor_parallel};
  }

  Items ItemsOf(const DecoderOptions& options) const {
    const OpLimits limits = OpLimitsOf(config_, options);
    const DecoderMemory memory = PlanDecoderMemory(
        config_, options,
        input_.on_gpu ? CudaScratchBytes(limits) : CpuScratchBytes(limits, input_.num_threads));
    Items out;
    if (input_.others_bytes > 0) out.Add("others", input_.others_bytes, input_.others);
    const uint64_t weights = input_.on_gpu ? weights_.matrix_bytes() : weights_.file_bytes;
    out.Add("weights", weights,
            input_.on_gpu && format_ == TrunkFormat::kInt8 ? "8-bit codes made from the checkpoint"
            : input_.on_gpu                                ? "copied from the checkpoint"
            : input_.weights_generated                     ? "generated"
                                                           : "mapped from the checkpoint");
    // Parts of the trunk that are on one host share what is mapped and have the rest each.
    const auto parts = static_cast<uint64_t>(input_.on_gpu ? 1 : input_.tensor_parallel);
    if (!input_.on_gpu && weights_.code_bytes > 0) {
      out.Add("8-bit weights", parts * weights_.code_bytes, "codes and scales");
    }
    if (!input_.on_gpu && weights_.decoded_bytes > 0) {
      out.Add("decoded weights", parts * weights_.decoded_bytes,
              "quantised matrices as bf16 or f32");
    }
    if (!input_.on_gpu && weights_.sliced_bytes > 0) {
      out.Add("sliced weights", parts * weights_.sliced_bytes,
              fmt::format("columns and heads of {} parts, copied", parts));
    }
    out.Add("vectors", parts * weights_.vector_bytes(), "norms, convolutions, decays as f32");
    out.Add("recurrent state", parts * memory.recurrent_state_bytes,
            fmt::format("{} slots of {}", options.num_slots,
                        FormatByteSize(parts * memory.recurrent_state_bytes /
                                       static_cast<uint64_t>(std::max(1, options.num_slots)))));
    const uint64_t workspace =
        memory.activation_bytes + memory.scratch_bytes +
        (input_.on_gpu ? 0 : memory.step_table_bytes + memory.row_block_bytes);
    out.Add("workspace", parts * workspace,
            fmt::format("activations and scratch, {} rows a step", options.max_rows));
    out.Add("KV pages", parts * memory.kv_cache_bytes,
            fmt::format("{} pages of {} tokens, {} each", options.num_pages, kKvPageTokens,
                        FormatByteSize(parts * memory.kv_cache_bytes /
                                       static_cast<uint64_t>(std::max(1, options.num_pages)))));
    if (input_.on_gpu) {
      const DeviceArena arena = TrunkArena(config_, options, weights_);
      CHECK(arena.asked_bytes() == out.total - input_.others_bytes);
      if (arena.for_now_bytes() > 0) {
        out.Add("code staging", arena.for_now_bytes(), "matrices on their way to codes");
      }
      out.Add("rounding", arena.bytes() - (out.total - input_.others_bytes),
              "pieces to 256 bytes, all of them to 2 MiB");
      out.Add("graphs", kGpuGraphBytes, "recorded steps, the driver's own");
      if (options.prompt_experts) {
        out.Add("page tables", MappedExpertBytes(config_) / kMappedBytesPerTableByte,
                "of the experts that the host has, the driver's own");
      }
    } else {
      out.Add("tensor index", input_.index_bytes, "names and places in the checkpoint");
      out.Add("process", kProcessBytes, "program, threads, tokenizer, RPC buffers");
    }
    return out;
  }

  int32_t MixedRows(const Width& width) const {
    if (input_.max_batch_tokens > 0) return width.rows;
    return std::min(width.rows,
                    std::max(kDefaultBatchTokens, width.sequences + kLeastRowsBesideSequences));
  }

  uint64_t Total(const Width& width, int32_t context, int64_t pages) const {
    return ItemsOf(OptionsOf(width, context, pages)).total;
  }

  std::string Title() const {
    if (!input_.on_gpu) return "host memory of the trunk";
    if (input_.tensor_parallel == 1) return "GPU memory of the trunk";
    return fmt::format("memory of each of the trunk's {} GPUs", input_.tensor_parallel);
  }

  TrunkPlan Describe(const Width& width, int32_t context, int64_t pages) const {
    TrunkPlan plan{.decoder = OptionsOf(width, context, pages),
                   .max_sequences = width.sequences,
                   .max_batch_tokens = width.rows,
                   .max_mixed_tokens = MixedRows(width),
                   .memory = MemoryPlan(Title(), budget_, source_)};
    for (MemoryPlan::Item& item : ItemsOf(plan.decoder).items) {
      plan.memory.Add(std::move(item.name), item.bytes, std::move(item.note));
    }
    if (input_.on_gpu) plan.gpu_host = GpuHost(plan.decoder);
    return plan;
  }

  // What the CUDA backends pin, one for each GPU (services/trunk/ops/cuda), and the process takes.
  MemoryPlan GpuHost(const DecoderOptions& options) const {
    const OpLimits limits = OpLimitsOf(config_, options);
    const DecoderMemory memory = PlanDecoderMemory(config_, options, CudaScratchBytes(limits));
    const ActivationSizes sizes = ActivationSizesOf(config_, options);
    const auto gpus = static_cast<uint64_t>(input_.tensor_parallel);
    MemoryPlan out(gpus == 1 ? "host memory of the trunk on the GPU"
                             : fmt::format("host memory of the trunk on {} GPUs", gpus),
                   std::numeric_limits<uint64_t>::max(), "no budget");
    const auto add = [&](const char* name, uint64_t bytes_of_one, const char* note) {
      out.Add(name, gpus * bytes_of_one,
              gpus == 1 ? std::string(note) : fmt::format("{}; for {} GPUs", note, gpus));
    };
    add("embedding table", weights_.table_bytes, "pinned; the GPU reads single rows of it");
    add("staging", 2 * kCudaCodeStagingBytes, "pinned; uploads pass through it");
    add("shared buffers",
        SharedActivationBytes(sizes) + static_cast<uint64_t>(ExpertRowBlocks(options)) *
                                           ExpertRowBlockBytes(sizes, options, /*on_host=*/false),
        "pinned; the experts' inputs and results, the highest logits");
    const uint64_t uploads = kUploadTables * static_cast<uint64_t>(limits.max_parts);
    add("step tables", memory.step_table_bytes + uploads * CudaStepTableBytes(limits),
        "the host's, and pinned ones in turn");
    out.Add("tensor index", input_.index_bytes, "names and places in the checkpoint");
    out.Add("process", kProcessBytes, "program, threads, tokenizer, RPC buffers");
    return out;
  }

  // With as many pages as are of use and fit.
  TrunkPlan MakePlan(const Width& width, int32_t context) const {
    int64_t low = Pages(context);
    int64_t high =
        std::min(kMostPages,
                 std::max(low, width.sequences * Pages(std::min(context, kTypicalRequestTokens))));
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      if (Total(width, context, middle) <= budget_) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return Describe(width, context, low);
  }

  const ModelConfig config_;  // of one device
  const TrunkPlanInput& input_;
  const TrunkFormat format_;
  const TrunkWeightSizes& weights_;
  uint64_t budget_ = 0;
  uint64_t most_ = 0;
  std::string source_;
};

// The largest value of a limit, below the one given and not below `least`, with which the plan
// holds; the plan grows with each.
std::optional<int32_t> LargestThatFits(const ModelConfig& config, const TrunkPlanInput& input,
                                       int32_t TrunkPlanInput::*limit, int32_t least) {
  const auto fits = [&](int32_t value) {
    TrunkPlanInput changed = input;
    changed.*limit = value;
    const Planner planner(config, changed);
    return planner.CheckLimits().ok() && planner.Fit().has_value();
  };
  int32_t low = least;
  int32_t high = input.*limit - 1;
  if (low > high || !fits(low)) return std::nullopt;
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

std::vector<PlanChange> ChangesThatFit(const ModelConfig& config, const TrunkPlanInput& input,
                                       const Planner& planner) {
  std::vector<PlanChange> out;
  if (const uint64_t least = planner.LeastBytes(); least <= planner.most_bytes()) {
    out.push_back({planner.flag(), std::to_string(least), FormatByteSize(least)});
  }
  const auto limit = [&](const char* flag, int32_t TrunkPlanInput::*member, int32_t least) {
    if (const auto value = LargestThatFits(config, input, member, least)) {
      out.push_back({flag, std::to_string(*value), ""});
    }
  };
  limit("--max_context_tokens", &TrunkPlanInput::max_context_tokens, 1);
  limit("--max_sequences", &TrunkPlanInput::max_sequences, 1);
  limit("--max_batch_tokens", &TrunkPlanInput::max_batch_tokens,
        std::max(input.max_sequences, 1) + kLeastRowsBesideSequences);
  return out;
}

}  // namespace

int64_t TrunkPlan::SequencesOf(int64_t context_tokens) const {
  return std::min<int64_t>(max_sequences,
                           decoder.num_pages / std::max<int64_t>(1, Pages(context_tokens)));
}

absl::StatusOr<TrunkPlan> PlanTrunk(const ModelConfig& config, const TrunkPlanInput& input,
                                    std::vector<PlanChange>* changes) {
  const Planner planner(config, input);
  RETURN_IF_ERROR(planner.CheckLimits());
  std::optional<TrunkPlan> plan = planner.Fit();
  TrunkPlanInput without = input;
  without.prompt_experts = {};
  if (input.prompt_experts.chosen) {
    std::optional<TrunkPlan> other = Planner(config, without).Fit();
    if (other && (!plan || plan->max_batch_tokens < kLongPromptTokens ||
                  plan->max_batch_tokens < other->max_batch_tokens)) {
      return *std::move(other);
    }
  }
  if (plan) return *std::move(plan);
  if (!input.trunk_format && input.on_gpu && !input.int8_weights.matrices.empty()) {
    TrunkPlanInput smaller = input;
    smaller.trunk_format = TrunkFormat::kInt8;
    return PlanTrunk(config, smaller, changes);
  }
  if (input.prompt_experts.chosen) return PlanTrunk(config, without, changes);  // what that lacks
  const std::vector<PlanChange> fitting = ChangesThatFit(config, input, planner);
  if (changes != nullptr) *changes = fitting;
  return WithChanges(planner.Refusal(), fitting);
}

}  // namespace banyan
