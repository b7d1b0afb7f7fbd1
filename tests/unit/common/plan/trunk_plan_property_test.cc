// 1000 combinations of models, budgets and limits: each gives a plan that holds its budget and the
// context it states, or is refused with changes of which every one works.
#include <gtest/gtest.h>

#include <random>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/plan/trunk_plan.h"

namespace banyan {
namespace {

constexpr uint64_t kSeed = 20260801;
constexpr int kCombinations = 2000;

class Combination {
 public:
  explicit Combination(std::mt19937_64& random) : random_(random) {
    MakeModel();
    MakeInput();
  }

  ModelConfig config;
  TrunkPlanInput input;

  std::string Text() const {
    return fmt::format(
        "{} layers, hidden {}, budget {}, available {}, {}, context {}, sequences {}, rows {}",
        config.num_hidden_layers, config.hidden_size, input.budget_bytes, input.available_bytes,
        input.on_gpu ? "gpu" : "cpu", input.max_context_tokens, input.max_sequences,
        input.max_batch_tokens);
  }

 private:
  int32_t Pick(std::initializer_list<int32_t> values) {
    return *(values.begin() + static_cast<std::ptrdiff_t>(random_() % values.size()));
  }

  void MakeModel() {
    const int32_t head_dim = Pick({32, 64, 128, 256});
    const int32_t kv_heads = Pick({1, 2, 4});
    const int32_t key_heads = Pick({2, 4, 16});
    const std::string json = fmt::format(
        R"({{"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"],
         "vocab_size": {}, "hidden_size": {}, "num_hidden_layers": {},
         "max_position_embeddings": {}, "num_attention_heads": {}, "num_key_value_heads": {},
         "head_dim": {}, "linear_num_key_heads": {}, "linear_num_value_heads": {},
         "linear_key_head_dim": {}, "linear_value_head_dim": {}, "linear_conv_kernel_dim": 4,
         "num_experts": {}, "num_experts_per_tok": {}, "moe_intermediate_size": {},
         "shared_expert_intermediate_size": {}, "full_attention_interval": {},
         "decoder_sparse_step": {}, "intermediate_size": 512, "hidden_act": "silu"}})",
        Pick({300, 4096, 151936}), Pick({64, 256, 1024, 2048, 4096}), Pick({1, 4, 12, 48}),
        Pick({64, 100, 1024, 8192, 32768, 262144}), kv_heads * Pick({1, 4, 8}), kv_heads, head_dim,
        key_heads, key_heads * Pick({1, 2}), Pick({32, 64, 128}), Pick({32, 64, 128}),
        Pick({4, 64, 512}), Pick({1, 2, 4}), Pick({32, 512}), Pick({64, 512}), Pick({1, 4, 50}),
        Pick({1, 1, 2}));
    auto parsed = ParseModelConfig(json, "combination");
    CHECK(parsed.ok());
    config = *std::move(parsed);
  }

  void MakeInput() {
    for (uint64_t i = 1 + random_() % 50; i > 0; --i) {
      input.weights.matrices.push_back(1 + random_() % (uint64_t{1} << (8 + random_() % 20)));
      input.weights.file_bytes += input.weights.matrices.back();
    }
    for (uint64_t i = random_() % 50; i > 0; --i) {
      input.weights.vectors.push_back(1 + random_() % (1 << 18));
    }
    input.index_bytes = random_() % (64 << 20);
    input.on_gpu = random_() % 2 == 0;
    input.expert_activations = random_() % 2 == 0 ? DType::kF32 : DType::kBF16;
    input.weights_generated = random_() % 4 == 0;
    input.halved_rows = Pick({0, 64, 2560});
    input.num_threads = Pick({1, 2, 16, 64});
    if (random_() % 2 == 0) {
      input.max_context_tokens =
          1 +
          static_cast<int32_t>(random_() % static_cast<uint64_t>(config.max_position_embeddings));
    }
    if (random_() % 3 == 0) input.max_sequences = Pick({1, 2, 7, 32, 100, 1000});
    if (random_() % 3 == 0) {
      input.max_batch_tokens = std::max(input.max_sequences, 1) + 63 + Pick({0, 1, 100, 2000});
    }
    const uint64_t budget = uint64_t{1} << (22 + random_() % 14);
    input.budget_bytes = random_() % 4 == 0 ? 0 : budget + random_() % budget;
    if (input.budget_bytes == 0 || random_() % 2 == 0) {
      const uint64_t available = uint64_t{1} << (24 + random_() % 14);
      input.available_bytes = available + random_() % available;
    }
    if (random_() % 2 == 0) return;
    // Near what the limits need, where every page counts.
    input.available_bytes = uint64_t{1} << 50;
    const auto roomy = PlanTrunk(config, input);
    input.available_bytes = 0;
    if (!roomy.ok()) return;
    input.budget_bytes = roomy->memory.total_bytes() / 100 * (60 + random_() % 50);
  }

  std::mt19937_64& random_;
};

// What may be used at the most.
uint64_t Granted(const TrunkPlanInput& input) {
  if (input.budget_bytes == 0) {
    return input.on_gpu ? input.available_bytes / 10 * 9 : input.available_bytes / 4 * 3;
  }
  return input.budget_bytes;
}

void ExpectHolds(const Combination& c, const TrunkPlanInput& input, const TrunkPlan& plan) {
  EXPECT_LE(plan.memory.total_bytes(), Granted(input));
  if (input.available_bytes > 0) {
    const bool mapped = !input.on_gpu && !input.weights_generated;
    EXPECT_LE(plan.memory.total_bytes() - (mapped ? input.weights.file_bytes : 0),
              input.available_bytes);
  }
  const DecoderOptions& decoder = plan.decoder;
  // One context of the stated length, and what a step needs.
  EXPECT_GE(decoder.max_context_tokens, 1);
  EXPECT_LE(decoder.max_context_tokens, c.config.max_position_embeddings);
  EXPECT_GE(int64_t{decoder.num_pages} * kKvPageTokens, decoder.max_context_tokens);
  EXPECT_GE(plan.SequencesOf(decoder.max_context_tokens), 1);
  EXPECT_GE(plan.max_sequences, 1);
  EXPECT_EQ(decoder.num_slots, plan.max_sequences);
  EXPECT_EQ(decoder.max_rows, plan.max_batch_tokens);
  EXPECT_GE(plan.max_batch_tokens, plan.max_sequences + kLeastRowsBesideSequences);
  // What was given is kept.
  if (input.max_context_tokens > 0) {
    EXPECT_EQ(decoder.max_context_tokens, input.max_context_tokens);
  } else {
    EXPECT_GE(decoder.max_context_tokens, std::min(1024, c.config.max_position_embeddings));
  }
  if (input.max_sequences > 0) {
    EXPECT_EQ(plan.max_sequences, input.max_sequences);
  }
  if (input.max_batch_tokens > 0) {
    EXPECT_EQ(plan.max_batch_tokens, input.max_batch_tokens);
  }
}

// Sets a flag; by how much less of the change, or more of the limit, it should no longer do.
int64_t* Limit(const PlanChange& change, TrunkPlanInput* input, int64_t* scratch, int sign) {
  const int64_t value = std::stoll(change.value) + sign;
  *scratch = value;
  if (change.flag == "--max_context_tokens") {
    input->max_context_tokens = static_cast<int32_t>(value);
  } else if (change.flag == "--max_sequences") {
    input->max_sequences = static_cast<int32_t>(value);
  } else if (change.flag == "--max_batch_tokens") {
    input->max_batch_tokens = static_cast<int32_t>(value);
  } else if (change.flag == (input->on_gpu ? "--vram_budget" : "--host_budget")) {
    input->budget_bytes = static_cast<uint64_t>(value);
  } else {
    ADD_FAILURE() << "unknown flag " << change.flag;
  }
  return scratch;
}

TEST(TrunkPlanPropertyTest, EveryCombinationServesOrIsRefusedWithAChangeThatWorks) {
  std::mt19937_64 random(kSeed);
  int held = 0;
  int refused = 0;
  int with_limits = 0;
  for (int i = 0; i < kCombinations; ++i) {
    const Combination c(random);
    SCOPED_TRACE(fmt::format("seed {} combination {}: {}", kSeed, i, c.Text()));
    std::vector<PlanChange> changes;
    const auto plan = PlanTrunk(c.config, c.input, &changes);
    if (plan.ok()) {
      ++held;
      ExpectHolds(c, c.input, *plan);
      continue;
    }
    ++refused;
    const std::string message(plan.status().message());
    ASSERT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted) << message;
    EXPECT_NE(message.find("needed"), std::string::npos) << message;
    EXPECT_NE(message.find("granted"), std::string::npos) << message;
    if (changes.empty()) {
      // Only where the machine itself is too small.
      ASSERT_GT(c.input.available_bytes, 0u);
      EXPECT_NE(message.find("no change of one flag"), std::string::npos) << message;
      TrunkPlanInput all = c.input;
      all.budget_bytes = all.available_bytes + all.weights.file_bytes;
      EXPECT_FALSE(PlanTrunk(c.config, all).ok());
      continue;
    }
    for (const PlanChange& change : changes) {
      EXPECT_NE(message.find(change.flag + " " + change.value), std::string::npos) << message;
      if (change.flag != changes[0].flag) ++with_limits;
      int64_t value = 0;
      TrunkPlanInput changed = c.input;
      Limit(change, &changed, &value, 0);
      const auto after = PlanTrunk(c.config, changed);
      ASSERT_TRUE(after.ok()) << change.flag << " " << change.value << ": " << after.status();
      ExpectHolds(c, changed, *after);
      // The smallest one: a byte less, a token more would not do.
      TrunkPlanInput beyond = c.input;
      const bool budget = change.flag.find("budget") != std::string::npos;
      Limit(change, &beyond, &value, budget ? -1 : 1);
      EXPECT_FALSE(PlanTrunk(c.config, beyond).ok()) << change.flag << " " << value;
    }
  }
  // The combinations are of all kinds.
  EXPECT_GT(held, kCombinations / 5);
  EXPECT_GT(refused, kCombinations / 5);
  EXPECT_GT(with_limits, 50);
}

}  // namespace
}  // namespace banyan
