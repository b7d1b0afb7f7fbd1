// What the plan counts of a GPU's memory is what a decoder asks for, piece by piece and to the
// byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/tensor_classes.h"
#include "common/plan/trunk_arena.h"
#include "common/plan/trunk_plan.h"
#include "services/trunk/model/decoder.h"
#include "services/trunk/model/expert_answers.h"
#include "services/trunk/model/trunk_pack_builder.h"
#include "tests/fakes/counting_backend.h"
#include "tests/fakes/local_transport.h"
#include "tests/fakes/source_dir.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::trunk {
namespace {

using ::testing::HasSubstr;

class DecoderArenaTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string directory = test::SourceDir() + "/tests/data/" + GetParam();
    auto config = LoadModelConfig(directory);
    auto checkpoint = Checkpoint::Open(directory);
    ASSERT_TRUE(config.ok() && checkpoint.ok()) << config.status() << checkpoint.status();
    config_ = *std::move(config);
    checkpoint_ = *std::move(checkpoint);
  }

  absl::StatusOr<std::unique_ptr<Decoder>> Create(const DecoderOptions& options, int32_t rank,
                                                  const TrunkPack* pack,
                                                  test::CountingBackend* backend) {
    const bool alone = options.tensor_parallel == 1;
    const DecoderRank place = {{rank, options.tensor_parallel}, alone ? nullptr : &answers_};
    experts_ = std::make_unique<test::LocalTransport>(*checkpoint_, config_);
    return Decoder::Create(config_, options, *checkpoint_, backend,
                           rank == 0 ? experts_.get() : nullptr, nullptr, place, {.pack = pack});
  }

  void ExpectAllUsed(const DecoderOptions& options, int32_t rank = 0,
                     const TrunkPack* pack = nullptr) {
    test::CountingBackend backend;
    const auto decoder = Create(options, rank, pack, &backend);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    EXPECT_TRUE(backend.reserved());
    EXPECT_EQ(backend.used_bytes(), backend.planned().piece_bytes());
  }

  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<test::LocalTransport> experts_;
  ExpertAnswers answers_{2, absl::ZeroDuration()};
};

const DecoderOptions kOptions = {.max_rows = 100, .num_slots = 3, .num_pages = 7};

TEST_P(DecoderArenaTest, IsUsedUp) {
  ExpectAllUsed(kOptions);
  DecoderOptions options = kOptions;
  options.kv_dtype = DType::kBF16;
  options.expert_activations = DType::kBF16;
  options.num_state_copies = 2;
  options.max_logits_rows = 100;
  ExpectAllUsed(options);
  options.halved_rows = 80;
  ExpectAllUsed(options);
  options.trunk_format = TrunkFormat::kInt8;
  ExpectAllUsed(options);
  options.tensor_parallel = 2;
  for (int32_t rank : {0, 1}) ExpectAllUsed(options, rank);
  options.trunk_format = TrunkFormat::kBf16;
  for (int32_t rank : {0, 1}) ExpectAllUsed(options, rank);
}

TEST_P(DecoderArenaTest, IsUsedUpFromAPack) {
  test::TempDir temp;
  WorkerPool pool({.num_threads = 2});
  for (const TrunkFormat format : {TrunkFormat::kBf16, TrunkFormat::kInt8}) {
    const TrunkPackRequest request = {checkpoint_.get(), &config_, format, temp.path()};
    const auto wanted = WantedTrunkPackHeader(request);
    ASSERT_TRUE(wanted.ok()) << wanted.status();
    if (wanted->matrices.empty()) continue;
    const auto made =
        EnsureTrunkPack(request, *wanted, pool, [](const PackProgress&) { return true; });
    ASSERT_TRUE(made.ok()) << made.status();
    DecoderOptions options = kOptions;
    options.trunk_format = format;
    ExpectAllUsed(options, 0, &made->pack);
    options.tensor_parallel = 2;
    ExpectAllUsed(options, 1, &made->pack);
  }
}

// The plan that a process makes before it loads is what the decoder sets aside.
TEST_P(DecoderArenaTest, IsWhatThePlanSays) {
  for (const TrunkFormat format : {TrunkFormat::kBf16, TrunkFormat::kInt8}) {
    for (const int32_t parts : {1, 2}) {
      TrunkPlanInput input;
      input.tensor_parallel = parts;
      input.weights = TrunkWeightSizesOf(*checkpoint_, config_, TrunkFormat::kBf16, parts);
      input.int8_weights = TrunkWeightSizesOf(*checkpoint_, config_, TrunkFormat::kInt8, parts);
      input.trunk_format = format;
      input.kv_dtype = DType::kBF16;
      input.halved_rows = 512;
      input.budget_bytes = uint64_t{1} << 30;
      input.on_gpu = true;
      const auto plan = PlanTrunk(config_, input);
      ASSERT_TRUE(plan.ok()) << plan.status();
      test::CountingBackend backend;
      const auto decoder = Create(plan->decoder, 0, nullptr, &backend);
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      EXPECT_EQ(plan->memory.Without("graphs").total_bytes(), backend.planned().bytes());
      EXPECT_EQ(backend.used_bytes(), backend.planned().piece_bytes());
    }
  }
}

// Whatever there is no room for is named, and nothing is taken beyond the arena.
TEST_P(DecoderArenaTest, WhatDoesNotFitIsNamed) {
  const auto refusal = [&](uint64_t missing) {
    test::CountingBackend backend(missing);
    const auto decoder = Create(kOptions, 0, nullptr, &backend);
    EXPECT_EQ(decoder.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_LE(backend.used_bytes() + missing, backend.planned().piece_bytes());
    return std::string(decoder.status().message());
  };
  const ModelConfig& config = config_;
  const uint64_t all =
      TrunkArena(config, kOptions, TrunkWeightSizesOf(*checkpoint_, config)).piece_bytes();
  EXPECT_THAT(refusal(1), HasSubstr("bytes wanted beyond"));
  EXPECT_THAT(refusal(all), HasSubstr("layers.0.input_layernorm.weight: "));
  const DecoderMemory memory = PlanDecoderMemory(config, kOptions, 0);
  const uint64_t scratch = CudaScratchBytes(OpLimitsOf(config, kOptions));
  EXPECT_THAT(refusal(scratch + memory.activation_bytes / 2), HasSubstr("buffers of a step: "));
  EXPECT_THAT(refusal(scratch + memory.activation_bytes + memory.recurrent_state_bytes),
              HasSubstr("recurrent state: "));
  EXPECT_THAT(refusal(scratch + memory.activation_bytes + memory.recurrent_state_bytes +
                      memory.kv_cache_bytes),
              HasSubstr("KV pages: "));
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderArenaTest,
                         testing::Values("tiny", "tiny-fused", "tiny-nf4", "tiny-int8", "tiny-fp8"),
                         [](const testing::TestParamInfo<std::string>& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace banyan::trunk
