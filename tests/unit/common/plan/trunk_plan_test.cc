#include "common/plan/trunk_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/plan/device_arena.h"
#include "common/plan/op_scratch.h"
#include "common/plan/prefill_halves.h"
#include "common/plan/trunk_arena.h"
#include "common/pool/shard.h"

namespace banyan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ModelConfig Demo() {
  auto config = LoadModelConfig(BANYAN_SOURCE_DIR "/deploy/models/demo");
  CHECK(config.ok());
  return *std::move(config);
}

TrunkPlanInput Input() {
  TrunkPlanInput input;
  input.weights.file_bytes = 10 << 20;
  input.weights.matrices = {5 << 20, 5 << 20};
  input.weights.vectors = {100'000, 200};
  input.max_sequences = 32;
  input.max_batch_tokens = 512;
  input.available_bytes = uint64_t{16} << 30;
  input.num_threads = 2;
  return input;
}

// Bytes of everything at a context and a number of pages: what PlanTrunk says of one that is given.
uint64_t TotalOf(const TrunkPlanInput& input, int32_t context, int32_t pages,
                 const ModelConfig& config = Demo()) {
  TrunkPlanInput given = input;
  given.max_context_tokens = context;
  given.budget_bytes = 0;
  const auto plan = PlanTrunk(config, given);
  CHECK(plan.ok());
  uint64_t page = 0;
  for (const MemoryPlan::Item& item : plan->memory.items()) {
    if (item.name == "KV pages") page = item.bytes / static_cast<uint64_t>(plan->decoder.num_pages);
  }
  return plan->memory.total_bytes() - page * static_cast<uint64_t>(plan->decoder.num_pages - pages);
}

uint64_t ItemOf(const TrunkPlan& plan, const char* name) {
  for (const MemoryPlan::Item& item : plan.memory.items()) {
    if (item.name == name) return item.bytes;
  }
  return 0;
}

TEST(TrunkPlanTest, AutomaticTakesTheModelsContextAndPagesForTypicalAnswers) {
  const auto plan = PlanTrunk(Demo(), Input());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->decoder.max_context_tokens, 8192);
  EXPECT_EQ(plan->decoder.num_pages, 32 * 4096 / 64);
  EXPECT_EQ(plan->decoder.num_slots, 32);
  EXPECT_EQ(plan->SequencesOf(4096), 32);
  EXPECT_EQ(plan->SequencesOf(8192), 16);
  EXPECT_THAT(plan->memory.Table(), AllOf(HasSubstr("KV pages"), HasSubstr("2048 pages"),
                                          HasSubstr("3/4 of 16.0 GiB available")));
}

TEST(TrunkPlanTest, AtLeastOneWholeContext) {
  TrunkPlanInput input = Input();
  input.max_sequences = 1;
  const auto plan = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->decoder.num_pages, 8192 / 64);
}

TEST(TrunkPlanTest, ToTheByte) {
  TrunkPlanInput input = Input();
  input.budget_bytes = TotalOf(input, 1280, 20);
  auto plan = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->decoder.num_pages, 20);
  EXPECT_EQ(plan->decoder.max_context_tokens, 20 * 64);
  EXPECT_EQ(plan->memory.total_bytes(), input.budget_bytes);
  --input.budget_bytes;
  plan = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->decoder.max_context_tokens, 19 * 64);
}

// The order in which things give way (trunk_plan.h), on a falling budget.
TEST(TrunkPlanTest, ShrinksInOrder) {
  TrunkPlanInput input = Input();
  input.max_sequences = 0;
  input.max_batch_tokens = 0;
  const auto first = PlanTrunk(Demo(), input);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->max_sequences, 32);
  EXPECT_EQ(first->max_batch_tokens, 512);
  TrunkPlan last = *first;
  bool narrow = false;
  bool short_context = false;
  for (uint64_t budget = first->memory.total_bytes(); budget > 0; budget -= budget / 50 + 1) {
    input.budget_bytes = budget;
    const auto plan = PlanTrunk(Demo(), input);
    if (!plan.ok()) {
      EXPECT_EQ(last.max_sequences, 1);
      EXPECT_EQ(last.max_batch_tokens, 64);
      EXPECT_LT(last.decoder.max_context_tokens, 2048);
      break;
    }
    EXPECT_LE(plan->memory.total_bytes(), budget);
    EXPECT_LE(plan->max_sequences, last.max_sequences);
    EXPECT_LE(plan->max_batch_tokens, last.max_batch_tokens);
    // Pages first: the demo's context is 8192, so it stays while anything else can give way.
    narrow |= plan->max_batch_tokens < 512;
    short_context |= plan->decoder.max_context_tokens < 8192;
    if (narrow) {
      EXPECT_TRUE(plan->decoder.num_pages >= 1024 / 64);
    }
    if (plan->max_sequences < 32) {
      EXPECT_LE(plan->max_batch_tokens, 128);
    }
    if (short_context) {
      EXPECT_EQ(plan->max_sequences, 1);
    }
    last = *plan;
  }
  EXPECT_TRUE(narrow);
  EXPECT_TRUE(short_context);
}

TEST(TrunkPlanTest, RefusesWithNumbersAndWhatWouldWork) {
  TrunkPlanInput input = Input();
  input.budget_bytes = 20 << 20;
  std::vector<PlanChange> changes;
  auto plan = PlanTrunk(Demo(), input, &changes);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(plan.status().message()),
              AllOf(HasSubstr("1024 tokens"), HasSubstr("20.0 MiB granted (--host_budget)"),
                    HasSubstr("this would work: --host_budget "), HasSubstr("weights"),
                    HasSubstr("recurrent state")));
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].flag, "--host_budget");
  input.budget_bytes = std::stoull(changes[0].value);
  EXPECT_TRUE(PlanTrunk(Demo(), input).ok());
  --input.budget_bytes;
  EXPECT_FALSE(PlanTrunk(Demo(), input).ok());

  input = Input();
  input.max_context_tokens = 8193;
  EXPECT_THAT(std::string(PlanTrunk(Demo(), input).status().message()),
              AllOf(HasSubstr("--max_context_tokens 8193"), HasSubstr("8192 positions")));
  input = Input();
  input.max_batch_tokens = 94;
  EXPECT_THAT(std::string(PlanTrunk(Demo(), input).status().message()),
              HasSubstr("--max_batch_tokens 94: expected at least 95 for 32 sequence(s)"));

  input = Input();
  input.budget_bytes = TotalOf(input, 8128, 127);
  input.max_context_tokens = 8192;
  plan = PlanTrunk(Demo(), input, &changes);
  EXPECT_THAT(
      std::string(plan.status().message()),
      AllOf(HasSubstr("a context of 8192 tokens does not fit"),
            HasSubstr("any one of these would work: "),
            HasSubstr("--max_context_tokens 8128, --max_sequences 31, --max_batch_tokens 4")));
}

TEST(TrunkPlanTest, WhatIsNotThereIsNotGranted) {
  TrunkPlanInput input = Input();
  input.available_bytes = 300 << 20;
  input.budget_bytes = uint64_t{8} << 30;
  const auto plan = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  // Pages of the checkpoint's files give way.
  EXPECT_LE(plan->memory.total_bytes(), input.available_bytes + input.weights.file_bytes);
  EXPECT_THAT(plan->memory.Table(), HasSubstr("--host_budget 8.00 GiB, but 300 MiB is available"));
  input.weights_generated = true;
  EXPECT_LE(PlanTrunk(Demo(), input)->memory.total_bytes(), input.available_bytes);
}

// Less than 2 MiB and 255 bytes a tensor are lost.
TEST(TrunkPlanTest, GpuMemoryIsOneArena) {
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  const auto plan = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->memory.Table(),
              AllOf(HasSubstr("rounding"), HasSubstr("graphs"), HasSubstr("--vram_budget"),
                    Not(HasSubstr("code staging"))));
  const DeviceArena arena = TrunkArena(Demo(), plan->decoder, input.weights);
  EXPECT_EQ(plan->memory.Without("graphs").total_bytes(), arena.bytes());
  EXPECT_EQ(plan->memory.Without("graphs").Without("rounding").total_bytes(), arena.asked_bytes());
  const size_t tensors = input.weights.matrices.size() + input.weights.vectors.size() + 200;
  EXPECT_LT(arena.bytes() - arena.asked_bytes(), kDevicePageBytes + 255 * tensors);
}

// Matrices pass through memory in which pages and buffers lie later; where these are less, it is
// counted.
TEST(TrunkPlanTest, StagingOfCodesIsLent) {
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  input.int8_weights = input.weights;
  const auto plain = PlanTrunk(Demo(), input);
  input.trunk_format = TrunkFormat::kInt8;
  const auto codes = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plain.ok() && codes.ok()) << codes.status();
  EXPECT_EQ(plain->memory.total_bytes(), codes->memory.total_bytes());
  input.max_context_tokens = 1024;
  input.max_sequences = 1;
  input.max_batch_tokens = 64;
  const auto small = PlanTrunk(Demo(), input);
  ASSERT_TRUE(small.ok()) << small.status();
  const uint64_t rest =
      small->memory.Without("graphs").Without("weights").Without("vectors").total_bytes();
  EXPECT_GE(rest, 2 * kCudaCodeStagingBytes);
  EXPECT_LT(rest, 2 * kCudaCodeStagingBytes + kDevicePageBytes);
  EXPECT_THAT(small->memory.Table(), HasSubstr("code staging"));
}

// The kernels of an operation leave what they leave for each other where those of the last one did.
TEST(TrunkPlanTest, OperationsShareTheirScratch) {
  OpLimits limits;
  limits.max_rows = 512;
  limits.max_segments = 2;
  limits.max_position = 32768;
  limits.max_columns = 4096;
  limits.max_logits_rows = 32;
  limits.vocab_size = 151936;
  EXPECT_EQ(CudaOperationBytes(limits), CudaSplitBytes(limits));
  limits.attention = {.num_heads = 16, .num_kv_heads = 2, .head_dim = 256, .rotary_dim = 64};
  EXPECT_EQ(CudaOperationBytes(limits), static_cast<size_t>(CudaPartialBytes(limits)));
  limits.tensor_parallel = 8;
  limits.max_reduced = 4159 * 2048;
  EXPECT_EQ(CudaOperationBytes(limits), CudaReduceBytes(limits));
  for (const int32_t parts : {1, 2}) {
    limits.max_parts = parts;
    EXPECT_EQ(CudaScratchBytes(limits),
              kCudaHandoverBytes + static_cast<size_t>(parts) * CudaStepTableBytes(limits) +
                  CudaOperationBytes(limits));
  }
}

// Weights on their way to the GPU, and lists of pairs: what ForEachCudaScratch says, in the plan.
TEST(TrunkPlanTest, PromptExpertsAreScratch) {
  const ModelConfig config = Demo();
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  const auto without = PlanTrunk(config, input);
  input.prompt_experts.percent = 50;
  const auto with = PlanTrunk(config, input);
  ASSERT_TRUE(without.ok() && with.ok()) << with.status();
  ASSERT_EQ(with->decoder.num_pages, without->decoder.num_pages);
  const auto pieces = [&](const TrunkPlan& plan) {
    std::vector<size_t> out;
    ForEachCudaScratch(OpLimitsOf(config, plan.decoder),
                       [&](size_t bytes) { out.push_back(bytes); });
    return out;
  };
  const std::vector<size_t> fewer = pieces(*without);
  const std::vector<size_t> all = pieces(*with);
  const OpLimits limits = OpLimitsOf(config, with->decoder);
  EXPECT_EQ(limits.host_experts.width, config.moe_intermediate_size);
  EXPECT_EQ(all.size(), fewer.size() + 2);
  const uint64_t grown = std::accumulate(all.begin(), all.end(), uint64_t{0}) -
                         std::accumulate(fewer.begin(), fewer.end(), uint64_t{0});
  EXPECT_GE(grown, CudaHostRingBytes(limits.host_experts) +
                       CudaHostExpertListBytes(limits.host_experts, limits.max_rows));
  EXPECT_EQ(ItemOf(*with, "workspace"), ItemOf(*without, "workspace") + grown);
  EXPECT_GT(ItemOf(*with, "page tables"), 0u);
  EXPECT_EQ(with->memory.Without("graphs").Without("page tables").total_bytes(),
            TrunkArena(config, with->decoder, input.weights).bytes());

  // On a CPU the rows and products of a group of pairs.
  input.on_gpu = false;
  input.available_bytes = uint64_t{16} << 30;
  input.budget_bytes = 0;
  const auto cpu = PlanTrunk(config, input);
  input.prompt_experts = {};
  const auto cpu_without = PlanTrunk(config, input);
  ASSERT_TRUE(cpu.ok() && cpu_without.ok()) << cpu.status();
  EXPECT_EQ(ItemOf(*cpu, "workspace") - ItemOf(*cpu_without, "workspace"),
            CpuHostExpertBytes(OpLimitsOf(config, cpu->decoder), input.num_threads));
}

// A mixer's buffers hold nothing when it is over, nor those of the MLP or the head.
TEST(TrunkPlanTest, StagesShareTheirBuffers) {
  ActivationSizes sizes;
  EXPECT_EQ(ActivationBytes(sizes), 0u);
  sizes.hidden = 1000;
  sizes.qkvz = 600;
  sizes.ba = 1;
  EXPECT_EQ(ActivationBytes(sizes), 4000u + 2560 + 256);
  sizes.q_gate = 500;
  sizes.logits = 700;
  EXPECT_EQ(ActivationBytes(sizes), 4000u + 2560 + 256);
  sizes.ffn_up = 1001;
  EXPECT_EQ(ActivationBytes(sizes), 4000u + 4096);
  sizes.expert_ids = 10;
  sizes.expert_rows = 20;
  EXPECT_EQ(ActivationBytes(sizes), 4000u + 4096 + 60);
}

// Steps of two halves on a GPU with room for them; those in which a sequence decodes stay small.
TEST(TrunkPlanTest, StepsOnAGpuAreLargeWhereTheyFit) {
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  input.halved_rows = kLeastHalvedRows;
  EXPECT_EQ(PlanTrunk(Demo(), input)->max_mixed_tokens, 512);  // given
  input.max_batch_tokens = 4000;
  EXPECT_EQ(PlanTrunk(Demo(), input)->max_mixed_tokens, 4000);
  input.max_batch_tokens = 0;
  const auto first = PlanTrunk(Demo(), input);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->max_batch_tokens, 2 * 2048 + 63);
  EXPECT_EQ(first->max_mixed_tokens, 512);
  EXPECT_EQ(first->decoder.halved_rows, kLeastHalvedRows);
  // The experts' limit is one of calls.
  EXPECT_LE(MaxCallRows(first->decoder), 4096);
  const int32_t context = first->decoder.max_context_tokens;
  EXPECT_EQ(context, 8192);
  int32_t last = first->max_batch_tokens;
  for (uint64_t budget = first->memory.total_bytes(); last > 512; budget -= budget / 50) {
    input.budget_bytes = budget;
    const auto plan = PlanTrunk(Demo(), input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->memory.total_bytes(), budget);
    EXPECT_LE(plan->max_batch_tokens, last);
    last = plan->max_batch_tokens;
    EXPECT_EQ(plan->max_sequences, 32);
    if (last > 512) {
      EXPECT_EQ(plan->decoder.max_context_tokens, context);
    }
    EXPECT_TRUE(last == 4159 || last == 2111 || last == 1087 || last == 512) << last;
  }
  // Without halves as much as the experts take in one call; on a CPU none of this.
  input.budget_bytes = uint64_t{8} << 30;
  input.halved_rows = 0;
  EXPECT_EQ(PlanTrunk(Demo(), input)->max_batch_tokens, 2111);
  input.on_gpu = false;
  input.halved_rows = 100;
  const auto cpu = PlanTrunk(Demo(), input);
  EXPECT_EQ(cpu->max_batch_tokens, 512);
  EXPECT_EQ(cpu->max_mixed_tokens, 512);
  EXPECT_EQ(cpu->decoder.halved_rows, 100);
}

// What nobody asked for costs neither steps nor context where steps would be short.
TEST(TrunkPlanTest, ChosenPromptExpertsGiveWay) {
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.max_sequences = 0;
  input.max_batch_tokens = 0;
  std::set<bool> chosen;
  bool refused = false;
  for (uint64_t budget = uint64_t{1} << 30; !refused; budget -= budget / 30) {
    input.budget_bytes = budget;
    input.prompt_experts = {};
    const auto without = PlanTrunk(Demo(), input);
    input.prompt_experts.percent = 50;
    const auto asked = PlanTrunk(Demo(), input);
    if (asked.ok()) {
      EXPECT_TRUE(asked->decoder.prompt_experts) << budget;
    }
    input.prompt_experts = {.percent = 0, .chosen = true};
    const auto plan = PlanTrunk(Demo(), input);
    refused = !plan.ok();
    ASSERT_EQ(refused, !without.ok()) << budget;
    if (refused) {
      EXPECT_EQ(plan.status(), without.status());
      continue;
    }
    chosen.insert(plan->decoder.prompt_experts);
    if (plan->decoder.prompt_experts) {
      ASSERT_TRUE(asked.ok()) << asked.status();
      EXPECT_EQ(plan->max_batch_tokens, asked->max_batch_tokens);
      EXPECT_GE(plan->max_batch_tokens, std::max(512, without->max_batch_tokens)) << budget;
    } else {
      EXPECT_EQ(plan->max_batch_tokens, without->max_batch_tokens);
      EXPECT_EQ(plan->decoder.num_pages, without->decoder.num_pages);
      EXPECT_TRUE(!asked.ok() || asked->max_batch_tokens < 512 ||
                  asked->max_batch_tokens < without->max_batch_tokens)
          << budget;
    }
  }
  EXPECT_THAT(chosen, ElementsAre(false, true));
  // Steps that were given are long enough, or not.
  input.budget_bytes = uint64_t{8} << 30;
  input.max_sequences = 8;
  for (const int32_t rows : {512, 511}) {
    input.max_batch_tokens = rows;
    EXPECT_EQ(PlanTrunk(Demo(), input)->decoder.prompt_experts, rows == 512) << rows;
  }
  // An 8-bit trunk beside them, where bf16 fits neither way.
  input.max_sequences = input.max_batch_tokens = 0;
  input.int8_weights.matrices = {1 << 20};
  input.weights.matrices = {uint64_t{9} << 30};
  const auto smaller = PlanTrunk(Demo(), input);
  ASSERT_TRUE(smaller.ok()) << smaller.status();
  EXPECT_EQ(smaller->decoder.trunk_format, TrunkFormat::kInt8);
  EXPECT_TRUE(smaller->decoder.prompt_experts);
}

// With experts of its own for prompts a GPU has steps as large as a call may be, undivided.
TEST(TrunkPlanTest, StepsWithPromptExpertsAreOneCall) {
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  input.prompt_experts.percent = 50;
  EXPECT_EQ(PlanTrunk(Demo(), input)->max_batch_tokens, 512);  // given
  input.max_batch_tokens = 0;
  const auto first = PlanTrunk(Demo(), input);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->max_batch_tokens, 4096);
  EXPECT_EQ(first->max_mixed_tokens, 512);
  EXPECT_TRUE(first->decoder.prompt_experts);
  EXPECT_FALSE(HasHalves(first->decoder));
  EXPECT_EQ(MaxCallRows(first->decoder), 4096);
  int32_t last = first->max_batch_tokens;
  std::set<int32_t> seen;
  for (uint64_t budget = first->memory.total_bytes(); last > 512; budget -= budget / 50) {
    input.budget_bytes = budget;
    const auto plan = PlanTrunk(Demo(), input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->memory.total_bytes(), budget);
    EXPECT_LE(plan->max_batch_tokens, last);
    last = plan->max_batch_tokens;
    seen.insert(last);
  }
  EXPECT_THAT(seen, ElementsAre(512, 2111, 4096));
  // Hosts take fewer of wide rows: a message holds no more.
  ModelConfig wide = Demo();
  wide.hidden_size = 5120;
  input.budget_bytes = uint64_t{16} << 30;
  const auto plan = PlanTrunk(wide, input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->max_batch_tokens, MaxRowsOf(wide));
  EXPECT_LT(plan->max_batch_tokens, 4096);
  // Nothing of this on a CPU.
  input.on_gpu = false;
  EXPECT_EQ(PlanTrunk(Demo(), input)->max_batch_tokens, 512);
}

// Context and sequences give way, to a point, before steps of prompts do.
TEST(TrunkPlanTest, StepsOnASmallGpuStayLarge) {
  ModelConfig config = Demo();
  config.max_position_embeddings = 262144;
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.max_sequences = 0;
  input.max_batch_tokens = 0;
  input.halved_rows = kLeastHalvedRows;
  const auto needs = [&](int32_t sequences, int32_t rows, int32_t context) {
    TrunkPlanInput given = input;
    given.available_bytes = uint64_t{1} << 40;
    given.max_sequences = sequences;
    given.max_batch_tokens = rows;
    return TotalOf(given, context, context / kKvPageTokens, config);
  };
  std::set<std::pair<int32_t, int32_t>> seen;
  const uint64_t most = needs(32, 4159, 262144);
  for (uint64_t budget = most + (1 << 20); budget > most / 8; budget -= budget / 100) {
    input.budget_bytes = budget;
    const auto plan = PlanTrunk(config, input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const int32_t rows = plan->max_batch_tokens;
    const int32_t context = plan->decoder.max_context_tokens;
    SCOPED_TRACE(fmt::format("{} bytes: {} sequences, {} rows, {} tokens", budget,
                             plan->max_sequences, rows, context));
    seen.insert({plan->max_sequences, rows});
    if (rows < 2111) {
      EXPECT_LT(budget, needs(4, 2111, 32768));
      continue;
    }
    EXPECT_TRUE(rows == 4159 || rows == 2111);
    EXPECT_GE(context, plan->max_sequences >= 8 && context >= 65536 ? 65536 : 32768);
    if (context < 65536) {
      EXPECT_LT(budget, needs(8, 2111, 65536));
    }
    if (plan->max_sequences < 32) {
      EXPECT_LT(budget, needs(plan->max_sequences * 2, 2111, context >= 65536 ? 65536 : 32768));
    }
  }
  EXPECT_GE(seen.size(), 5u);
  // What is given stays.
  input.max_sequences = 20;
  input.budget_bytes = needs(20, 2111, 65536);
  EXPECT_EQ(PlanTrunk(config, input)->max_sequences, 20);
  EXPECT_EQ(PlanTrunk(config, input)->max_batch_tokens, 2111);
}

TEST(TrunkPlanTest, CallsOfHalvesAreSmallerThanSteps) {
  DecoderOptions options = {.max_rows = 4159, .halved_rows = 2560};
  EXPECT_TRUE(HasHalves(options));
  EXPECT_EQ(BufferRows(options), 4159 + 63);
  EXPECT_EQ(MaxCallRows(options), 2559);
  options.halved_rows = 100;
  EXPECT_EQ(MaxCallRows(options), (4159 + 65) / 2);
  for (const int32_t none : {0, 5000}) {
    options.halved_rows = none;
    EXPECT_FALSE(HasHalves(options));
    EXPECT_EQ(BufferRows(options), 4159);
    EXPECT_EQ(MaxCallRows(options), 4159);
  }
}

// Heads and widths are halved: so are the state and the KV pages of each of two GPUs, here of one
// KV head, which both have.
TEST(TrunkPlanTest, PartsOnGpusArePlannedEach) {
  TrunkPlanInput input = Input();
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  const auto whole = PlanTrunk(Demo(), input);
  input.tensor_parallel = 2;
  const auto half = PlanTrunk(Demo(), input);
  ASSERT_TRUE(whole.ok() && half.ok()) << half.status();
  EXPECT_EQ(ItemOf(*half, "recurrent state") * 2, ItemOf(*whole, "recurrent state"));
  EXPECT_EQ(ItemOf(*half, "KV pages"), ItemOf(*whole, "KV pages"));
  EXPECT_LT(ItemOf(*half, "workspace"), ItemOf(*whole, "workspace"));
  EXPECT_EQ(half->decoder.tensor_parallel, 2);
  input.budget_bytes = 1 << 20;
  EXPECT_THAT(std::string(PlanTrunk(Demo(), input).status().message()),
              HasSubstr("memory of each of the trunk's 2 GPUs"));
}

TEST(TrunkPlanTest, PartsOnOneHostAreAddedUp) {
  TrunkPlanInput input = Input();
  const auto whole = PlanTrunk(Demo(), input);
  input.tensor_parallel = 2;
  input.weights.sliced_bytes = 1000;
  const auto parts = PlanTrunk(Demo(), input);
  ASSERT_TRUE(whole.ok() && parts.ok()) << parts.status();
  EXPECT_EQ(ItemOf(*parts, "weights"), ItemOf(*whole, "weights"));  // mapped once
  EXPECT_EQ(ItemOf(*parts, "sliced weights"), 2000u);
  EXPECT_EQ(ItemOf(*parts, "vectors"), 2 * ItemOf(*whole, "vectors"));
  EXPECT_EQ(ItemOf(*parts, "recurrent state"), ItemOf(*whole, "recurrent state"));
  EXPECT_EQ(ItemOf(*parts, "KV pages"), 2 * ItemOf(*whole, "KV pages"));  // one KV head
}

// More than two devices gather before they add.
TEST(TrunkPlanTest, GatheredPartsAreScratch) {
  OpLimits limits;
  limits.max_reduced = 512 * 2048;
  for (const auto& [size, floats] : {std::pair<int32_t, size_t>{1, 0}, {2, 0}, {4, 4}, {8, 8}}) {
    limits.tensor_parallel = size;
    EXPECT_EQ(CudaReduceBytes(limits), floats * 512 * 2048 * sizeof(float));
  }
}

// The widest x, split in two bf16, rows in whole groups: what mixers and FFNs read.
TEST(TrunkPlanTest, SplitRowsAreScratch) {
  OpLimits limits;
  limits.max_rows = 129;
  EXPECT_EQ(CudaSplitBytes(limits), 0u);
  limits.max_columns = 4096;
  EXPECT_EQ(CudaSplitBytes(limits), size_t{256} * 4096 * 4);
  const size_t with = CudaScratchBytes(limits);
  limits.max_columns = 0;
  EXPECT_EQ(with - CudaScratchBytes(limits), size_t{256} * 4096 * 4);

  const ModelConfig config = Demo();
  DecoderOptions options;
  options.max_rows = 8;
  options.num_slots = 1;
  const int32_t columns = OpLimitsOf(config, options).max_columns;
  EXPECT_GE(columns, config.hidden_size);
  EXPECT_GE(columns, config.num_attention_heads * config.head_dim);
  EXPECT_GE(columns, config.linear_value_dim());
  EXPECT_GE(columns, config.shared_expert_intermediate_size);
}

// What is pinned for a GPU is the host's: the embedding that is not the head too, two pieces that
// uploads pass through, what experts read and write.
TEST(TrunkPlanTest, ChunksOfDeltaNetAreScratch) {
  OpLimits limits;
  limits.max_rows = 512;
  limits.max_segments = 2;
  EXPECT_EQ(CudaDeltaBytes(limits), 0u);
  limits.delta_net = {.num_key_heads = 16,
                      .num_value_heads = 32,
                      .key_head_dim = 128,
                      .value_head_dim = 128,
                      .conv_taps = 4,
                      .eps = 1e-6f};
  const size_t chunk = 16 * kCudaChunkKeyBytes + 32 * kCudaChunkGateBytes;
  EXPECT_EQ(CudaDeltaBytes(limits), 10 * chunk);  // 8, and one that is not full for each sequence
  limits.max_rows = 8192;
  EXPECT_EQ(CudaMaxChunks(limits), 130);
  EXPECT_EQ(CudaDeltaBytes(limits), 32 * chunk);  // the rest after these
  limits.max_rows = 3;
  limits.max_segments = 16;
  EXPECT_EQ(CudaDeltaBytes(limits), 3 * chunk);
}

TEST(TrunkPlanTest, AGpuTrunkTakesHostMemoryBesides) {
  TrunkPlanInput input = Input();
  EXPECT_FALSE(PlanTrunk(Demo(), input)->gpu_host.has_value());
  input.on_gpu = true;
  input.available_bytes = 0;
  input.budget_bytes = uint64_t{8} << 30;
  input.weights.table_bytes = 12345678;
  const auto plan = PlanTrunk(Demo(), input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(plan->gpu_host.has_value());
  const auto bytes = [&](std::string_view name) {
    for (const MemoryPlan::Item& item : plan->gpu_host->items()) {
      if (item.name == name) return item.bytes;
    }
    return uint64_t{0};
  };
  const ModelConfig config = Demo();
  const auto rows = static_cast<uint64_t>(plan->max_batch_tokens);
  EXPECT_EQ(bytes("embedding table"), 12345678u);
  EXPECT_EQ(bytes("staging"), uint64_t{32} << 20);
  // Inputs of a step, twice more for those on their way, and results; the highest logits.
  const uint64_t top = static_cast<uint64_t>(plan->decoder.max_logits_rows) * (64 * 8 + 4);
  EXPECT_EQ(bytes("shared buffers"),
            rows * ((3 + 1) * 4 * static_cast<uint64_t>(config.hidden_size) +
                    6 * static_cast<uint64_t>(config.num_experts_per_tok)) +
                top);
  EXPECT_GT(bytes("step tables"), 0u);

  // Every GPU has a backend, which pins its own; the process is one.
  TrunkPlanInput parallel = input;
  parallel.tensor_parallel = 2;
  parallel.max_context_tokens = plan->decoder.max_context_tokens;
  parallel.max_sequences = plan->max_sequences;
  parallel.max_batch_tokens = plan->max_batch_tokens;
  parallel.weights.table_bytes = input.weights.table_bytes / 2;  // half of the vocabulary
  const auto two = PlanTrunk(Demo(), parallel);
  ASSERT_TRUE(two.ok()) << two.status();
  const auto of_two = [&](std::string_view name) {
    for (const MemoryPlan::Item& item : two->gpu_host->items()) {
      if (item.name == name) return item.bytes;
    }
    return uint64_t{0};
  };
  EXPECT_EQ(of_two("embedding table"), bytes("embedding table"));
  for (const char* name : {"staging", "shared buffers"}) {
    EXPECT_EQ(of_two(name), 2 * bytes(name)) << name;
  }
  EXPECT_GT(of_two("step tables"), bytes("step tables"));
  for (const char* name : {"tensor index", "process"}) EXPECT_EQ(of_two(name), bytes(name)) << name;
  EXPECT_THAT(two->gpu_host->Table(), HasSubstr("for 2 GPUs"));

  // Rows that the experts get in bf16 lie there in bf16, and on the GPU beside the f32 ones.
  input.expert_activations = DType::kBF16;
  const auto rounded = PlanTrunk(Demo(), input);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  ASSERT_EQ(rounded->max_batch_tokens, plan->max_batch_tokens);
  const uint64_t row_bytes = 2 * static_cast<uint64_t>(config.hidden_size);
  for (const MemoryPlan::Item& item : rounded->gpu_host->items()) {
    if (item.name == "shared buffers") {
      EXPECT_EQ(item.bytes, bytes("shared buffers") - 3 * rows * row_bytes);
    }
  }
  EXPECT_EQ(ItemOf(*rounded, "workspace"), ItemOf(*plan, "workspace") + rows * row_bytes);
}

}  // namespace
}  // namespace banyan
