#include "common/plan/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/config/tensor_inventory.h"
#include "common/synth/synth_config.h"

namespace banyan {
namespace {

using ::testing::HasSubstr;

ModelConfig Model(const std::string& where, const std::vector<std::string>& values = {}) {
  absl::StatusOr<SynthConfig> config = MakeSynthConfig(where, values);
  EXPECT_TRUE(config.ok()) << config.status();
  return config->model;
}

// Models, and the sizes that they can be cut in.
struct Case {
  const char* name;
  ModelConfig config;
  std::vector<int32_t> sizes;
};

std::vector<Case> Cases() {
  return {{"80b", Model("qwen3-next-80b"), {1, 2, 4, 8}},
          {"demo", Model(BANYAN_SOURCE_DIR "/deploy/models/demo"), {1, 2}},
          {"tiny", Model("tiny"), {1, 2, 4}},
          {"dense layers", Model("tiny", {"mlp_only_layers=[1]", "intermediate_size=192"}), {2, 4}},
          {"more ranks than heads",
           Model("tiny", {"num_attention_heads=16", "num_key_value_heads=1",
                          "linear_num_key_heads=2", "linear_num_value_heads=16"}),
           {2, 4, 8}}};
}

// The name as the inventory of the rank's own model has it too.
std::map<std::string, Shape> ShapesOf(const ModelConfig& config) {
  std::map<std::string, Shape> shapes;
  for (const TensorSpec& spec : TrunkTensors(config)) shapes.emplace(spec.name, spec.shape);
  return shapes;
}

TEST(TensorParallelTest, SlicesAreTheTensorsOfTheRanksModel) {
  for (const Case& c : Cases()) {
    for (const int32_t size : c.sizes) {
      SCOPED_TRACE(std::string(c.name) + " " + std::to_string(size));
      ASSERT_TRUE(CheckTensorParallel(c.config, size).ok());
      const std::map<std::string, Shape> own = ShapesOf(RankConfig(c.config, size));
      for (const TensorSpec& spec : TrunkTensors(c.config)) {
        const Shape& shape = own.at(spec.name);
        for (int32_t rank = 0; rank < size; ++rank) {
          const TensorSlice slice = SliceOf(spec.name, spec.shape, c.config, {rank, size});
          EXPECT_EQ(slice.num_rows(), shape.dim(0)) << spec.name;
          EXPECT_EQ(slice.num_elements(), shape.num_elements()) << spec.name;
        }
      }
    }
  }
}

// Every element is on some rank; on one alone unless the tensor is everywhere or belongs to heads
// that are shared.
TEST(TensorParallelTest, TogetherTheyAreTheWholeTensor) {
  for (const Case& c : Cases()) {
    for (const int32_t size : c.sizes) {
      SCOPED_TRACE(std::string(c.name) + " " + std::to_string(size));
      for (const TensorSpec& spec : TrunkTensors(c.config)) {
        const int64_t num_cols = spec.shape.num_elements() / spec.shape.dim(0);
        std::vector<int32_t> rows(static_cast<size_t>(spec.shape.dim(0)));
        std::vector<int32_t> cols(static_cast<size_t>(num_cols));
        for (int32_t rank = 0; rank < size; ++rank) {
          const TensorSlice slice = SliceOf(spec.name, spec.shape, c.config, {rank, size});
          int64_t last = -1;
          for (const IndexRange& range : slice.rows) {
            ASSERT_GT(range.begin, last) << spec.name;  // ascending, apart
            ASSERT_GT(range.size(), 0) << spec.name;
            last = range.end;
            for (int64_t i = range.begin; i < range.end; ++i) ++rows[static_cast<size_t>(i)];
          }
          for (int64_t i = slice.cols.begin; i < slice.cols.end; ++i)
            ++cols[static_cast<size_t>(i)];
        }
        for (const int32_t count : rows) ASSERT_GE(count, 1) << spec.name;
        for (const int32_t count : cols) ASSERT_GE(count, 1) << spec.name;
        const bool divided = spec.name.ends_with("_proj.weight") || spec.name == "lm_head.weight";
        const bool shared =
            spec.name.ends_with(".k_proj.weight") || spec.name.ends_with(".v_proj.weight");
        if (divided && !shared) {
          ASSERT_TRUE(rows == std::vector<int32_t>(rows.size(), 1) ||
                      cols == std::vector<int32_t>(cols.size(), 1))
              << spec.name;
        }
      }
    }
  }
}

// Key head 1 of two, on ranks 2 and 3 of four: its query and key, and each its own values.
TEST(TensorParallelTest, SharedKeyHeadsKeepTheirPacking) {
  const ModelConfig tiny = Model("tiny");  // two key heads of 32, four value heads of 32
  const std::string p = "model.layers.0.linear_attn.";
  const auto rows = [&](const char* name, const Shape& shape, int32_t rank) {
    return SliceOf(p + name, shape, tiny, {rank, 4}).rows;
  };
  using Ranges = std::vector<IndexRange>;
  // A group: q 32, k 32, v 64, z 64.
  EXPECT_EQ(rows("in_proj_qkvz.weight", {384, 128}, 2), (Ranges{{192, 288}, {320, 352}}));
  EXPECT_EQ(rows("in_proj_qkvz.weight", {384, 128}, 3),
            (Ranges{{192, 256}, {288, 320}, {352, 384}}));
  EXPECT_EQ(rows("in_proj_ba.weight", {8, 128}, 3), (Ranges{{5, 6}, {7, 8}}));
  EXPECT_EQ(rows("conv1d.weight", {256, 1, 4}, 3), (Ranges{{32, 64}, {96, 128}, {224, 256}}));
  EXPECT_EQ(rows("A_log", {4}, 3), (Ranges{{3, 4}}));
  EXPECT_EQ(rows("norm.weight", {32}, 3), (Ranges{{0, 32}}));
  EXPECT_EQ(SliceOf(p + "out_proj.weight", {128, 128}, tiny, {3, 4}).cols, (IndexRange{96, 128}));
}

TEST(TensorParallelTest, RefusesWithBothNumbers) {
  const auto refusal = [](const ModelConfig& config, int32_t size) {
    const absl::Status status = CheckTensorParallel(config, size);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const ModelConfig tiny = Model("tiny");
  EXPECT_EQ(refusal(tiny, 3), "--tensor_parallel 3: expected 1, 2, 4 or 8");
  EXPECT_EQ(refusal(tiny, 16), "--tensor_parallel 16: expected 1, 2, 4 or 8");
  EXPECT_EQ(refusal(tiny, 8),
            "--tensor_parallel 8: num_attention_heads is 4, expected a multiple of 8");
  EXPECT_EQ(refusal(Model("tiny", {"vocab_size=2050"}), 4),
            "--tensor_parallel 4: vocab_size is 2050, expected a multiple of 4");
  EXPECT_EQ(refusal(Model("tiny", {"num_attention_heads=12", "num_key_value_heads=3"}), 4),
            "--tensor_parallel 4: num_key_value_heads is 3, expected a multiple or a divisor of 4");
  EXPECT_EQ(refusal(Model("tiny", {"shared_expert_intermediate_size=70"}), 4),
            "--tensor_parallel 4: shared_expert_intermediate_size is 70, expected a multiple of 4");
  EXPECT_THAT(refusal(Model("tiny", {"linear_num_value_heads=6"}), 4),
              HasSubstr("linear_num_value_heads is 6"));
}

}  // namespace
}  // namespace banyan
