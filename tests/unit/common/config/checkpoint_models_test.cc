// The models that ship with the repository open, and are complete.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "common/base/strings.h"
#include "common/config/generation_config.h"
#include "common/config/model_config.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"

namespace banyan {
namespace {

constexpr char kTiny[] = BANYAN_SOURCE_DIR "/tests/data/tiny";
constexpr char kTinyFused[] = BANYAN_SOURCE_DIR "/tests/data/tiny-fused";
constexpr char kDemo[] = BANYAN_SOURCE_DIR "/deploy/models/demo";

struct Opened {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
  CheckpointSummary summary;
};

Opened Open(const std::string& directory) {
  auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto config = LoadModelConfig(directory);
  EXPECT_TRUE(config.ok()) << config.status();
  if (!checkpoint.ok() || !config.ok()) std::abort();
  auto summary = CheckComplete(**checkpoint, *config);
  EXPECT_TRUE(summary.ok()) << summary.status();
  if (!summary.ok()) std::abort();
  return {*std::move(checkpoint), *std::move(config), *std::move(summary)};
}

TEST(ShippedModels, TinyIsComplete) {
  const Opened tiny = Open(kTiny);
  EXPECT_EQ(tiny.config.num_hidden_layers, 4);
  EXPECT_EQ(tiny.config.mixers,
            (std::vector{MixerKind::kLinearAttention, MixerKind::kLinearAttention,
                         MixerKind::kLinearAttention, MixerKind::kFullAttention}));
  EXPECT_EQ(tiny.config.rotary_dim, 16);
  EXPECT_EQ(tiny.config.rope_theta, 1e7);
  EXPECT_EQ(tiny.config.linear_conv_dim(), 256);
  EXPECT_TRUE(tiny.config.eos_token_ids.empty());
  EXPECT_EQ(tiny.summary.num_expert_tensors, 4 * 16 * 3);
  EXPECT_EQ(tiny.summary.expert_bytes, 4 * 16 * 3 * 64 * 128 * 2);
  EXPECT_EQ(tiny.summary.num_trunk_tensors + tiny.summary.num_expert_tensors,
            static_cast<int64_t>(tiny.checkpoint->entries().size()));
  EXPECT_EQ(tiny.summary.num_mtp_tensors, 0);
  EXPECT_EQ(tiny.summary.expert_naming, std::vector(4, ExpertNaming::kPerExpert));
}

TEST(ShippedModels, FusedSlicesEqualPerExpertTensors) {
  const Opened tiny = Open(kTiny);
  const Opened fused = Open(kTinyFused);
  EXPECT_EQ(fused.summary.expert_naming, std::vector(4, ExpertNaming::kFused));
  EXPECT_EQ(fused.summary.expert_bytes, tiny.summary.expert_bytes);
  EXPECT_NE(fused.checkpoint->fingerprint(), tiny.checkpoint->fingerprint());
  const auto same = [](const StoredMatrix& x, const StoredMatrix& y) {
    const TensorView& a = x.weight;
    const TensorView& b = y.weight;
    return a.dtype == b.dtype && a.shape == b.shape &&
           std::memcmp(a.data, b.data, a.size_bytes()) == 0;
  };
  for (int32_t layer = 0; layer < 4; ++layer) {
    for (int32_t expert = 0; expert < 16; ++expert) {
      const auto a = GetExpertTensors(*tiny.checkpoint, tiny.config, layer, expert);
      const auto b = GetExpertTensors(*fused.checkpoint, fused.config, layer, expert);
      ASSERT_TRUE(a.ok()) << a.status();
      ASSERT_TRUE(b.ok()) << b.status();
      EXPECT_EQ(a->gate_proj.weight.shape, (Shape{64, 128}));
      EXPECT_EQ(a->down_proj.weight.shape, (Shape{128, 64}));
      EXPECT_TRUE(same(a->gate_proj, b->gate_proj)) << layer << " " << expert;
      EXPECT_TRUE(same(a->up_proj, b->up_proj)) << layer << " " << expert;
      EXPECT_TRUE(same(a->down_proj, b->down_proj)) << layer << " " << expert;
    }
  }
}

TEST(ShippedModels, DemoIsCompleteAndReportsItsMtpHead) {
  const Opened demo = Open(kDemo);
  EXPECT_EQ(demo.config.eos_token_ids, std::vector<int32_t>{1002});
  EXPECT_EQ(demo.checkpoint->files().size(), 4u);
  EXPECT_GT(demo.summary.num_mtp_tensors, 100);
  EXPECT_EQ(demo.summary.mtp_bytes, 2222592);
  EXPECT_EQ(demo.summary.num_unused_tensors, 0);
  EXPECT_EQ(demo.summary.trunk_bytes + demo.summary.expert_bytes + demo.summary.mtp_bytes, 20054368)
      << "total_size of the index";
  const auto generation = LoadGenerationConfig(kDemo);
  ASSERT_TRUE(generation.ok()) << generation.status();
  EXPECT_EQ(generation->eos_token_ids, (std::vector<int32_t>{1002, 1000}));
  EXPECT_FLOAT_EQ(generation->temperature.value(), 0.7f);
  EXPECT_EQ(generation->top_k, 20);
  EXPECT_FLOAT_EQ(generation->top_p.value(), 0.8f);
  EXPECT_FALSE(generation->min_p.has_value());
}

TEST(ShippedModels, GetNamesWhatDoesNotFit) {
  const Opened tiny = Open(kTiny);
  const auto norm = tiny.checkpoint->Get("model.norm.weight", {128}, kPlainDTypes);
  ASSERT_TRUE(norm.ok()) << norm.status();
  EXPECT_EQ(norm->size_bytes(), 256u);
  const auto absent = tiny.checkpoint->Get("model.nrom.weight", {128}, kPlainDTypes);
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(absent.status().message(), fmt::format("{}: no tensor 'model.nrom.weight'", kTiny));
  const auto shape = tiny.checkpoint->Get("model.norm.weight", {127}, kPlainDTypes);
  EXPECT_EQ(shape.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(shape.status().message(),
            "model.norm.weight: shape [128], expected [127] (model-00003-of-00003.safetensors)");
  constexpr DType kFloats[] = {DType::kF32, DType::kF16};
  const auto dtype = tiny.checkpoint->Get("model.norm.weight", {128}, kFloats);
  EXPECT_EQ(dtype.status().message(),
            "model.norm.weight: dtype BF16, expected F32 or F16 "
            "(model-00003-of-00003.safetensors)");
  for (const auto& [layer, expert] :
       {std::pair(-1, 0), std::pair(4, 0), std::pair(0, -1), std::pair(0, 16)}) {
    EXPECT_EQ(GetExpertTensors(*tiny.checkpoint, tiny.config, layer, expert).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace banyan
