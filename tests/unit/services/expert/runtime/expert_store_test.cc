#include "services/expert/runtime/expert_store.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/quant/reference.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::expert {
namespace {

std::string DataDir(const std::string& name) {
  return std::string(BANYAN_SOURCE_DIR) + "/tests/data/" + name;
}

std::vector<double> Row(const WeightMatrix& matrix, int64_t row, int64_t cols) {
  return DequantizeRow({matrix.data, matrix.type == WeightType::kBF16 ? DType::kBF16 : DType::kF32,
                        row + 1, cols, matrix.row_stride_bytes},
                       row);
}

std::vector<double> Row(const TensorView& view, int64_t row) {
  const int64_t cols = view.shape.dim(1);
  return DequantizeRow({view.data, view.dtype, view.shape.dim(0), cols,
                        cols * static_cast<int64_t>(DTypeSizeBytes(view.dtype))},
                       row);
}

class ExpertStoreTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Namings, ExpertStoreTest, ::testing::Values("tiny", "tiny-fused"),
                         [](const auto& tested) {
                           return std::string(tested.param) == "tiny" ? "PerExpert" : "Fused";
                         });

// Every view of every shard shows exactly its part of the checkpoint's tensor.
TEST_P(ExpertStoreTest, ViewsAreTheSlices) {
  const std::string directory = DataDir(GetParam());
  const auto checkpoint = Checkpoint::Open(directory);
  const auto config = LoadModelConfig(directory);
  ASSERT_TRUE(checkpoint.ok() && config.ok());
  for (const ShardSplit split : {ShardSplit::kWidth, ShardSplit::kExperts}) {
    for (const int32_t n : {1, 2, 3, 7}) {
      uint64_t total_bytes = 0;
      for (int32_t i = 0; i < n; ++i) {
        const auto store = ExpertStore::Open(directory, {i, n, split});
        ASSERT_TRUE(store.ok()) << store.status();
        const ShardGeometry& g = (*store)->description().geometry;
        total_bytes += (*store)->description().pool_bytes;
        EXPECT_EQ((*store)->description().fingerprint, (*checkpoint)->fingerprint());
        EXPECT_EQ((*store)->description().format, "bf16");
        for (const int32_t layer : (*store)->description().moe_layers) {
          const std::vector<ExpertWeights>& experts =
              (*store)->table().layers[static_cast<size_t>(layer)];
          ASSERT_EQ(static_cast<int32_t>(experts.size()), g.num_shard_experts);
          for (int32_t e = 0; e < g.num_shard_experts; e += 3) {
            const ExpertWeights& w = experts[static_cast<size_t>(e)];
            const auto whole = GetExpertTensors(**checkpoint, *config, layer, g.first_expert + e);
            ASSERT_TRUE(whole.ok()) << whole.status();
            for (int32_t r = 0; r < g.num_shard_width; r += 5) {
              EXPECT_EQ(Row(w.gate_proj, r, g.hidden_size),
                        Row(whole->gate_proj.weight, g.first_width + r));
              EXPECT_EQ(Row(w.up_proj, r, g.hidden_size),
                        Row(whole->up_proj.weight, g.first_width + r));
            }
            for (int32_t r = 0; r < g.hidden_size; r += 31) {
              const std::vector<double> row = Row(whole->down_proj.weight, r);
              EXPECT_EQ(Row(w.down_proj, r, g.num_shard_width),
                        std::vector<double>(row.begin() + g.first_width,
                                            row.begin() + g.first_width + g.num_shard_width));
            }
          }
        }
      }
      // 4 layers of 16 experts of 3 matrices of 64 x 128 in bf16.
      EXPECT_EQ(total_bytes, 4u * 16 * 3 * 64 * 128 * 2) << n;
    }
  }
}

TEST_P(ExpertStoreTest, LoadReportsEveryByteAndCanBeStopped) {
  const auto store = ExpertStore::Open(DataDir(GetParam()), {1, 3, ShardSplit::kWidth});
  ASSERT_TRUE(store.ok()) << store.status();
  WorkerPool pool({.num_threads = 2});
  std::vector<uint64_t> reports;
  ASSERT_TRUE((*store)
                  ->Load(pool,
                         [&](uint64_t done) {
                           reports.push_back(done);
                           return true;
                         })
                  .ok());
  EXPECT_EQ(reports.front(), 0u);
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
  EXPECT_EQ(reports.back(), (*store)->description().pool_bytes);

  const absl::Status stopped = (*store)->Load(pool, [](uint64_t done) { return done == 0; });
  EXPECT_EQ(stopped.code(), absl::StatusCode::kCancelled);
}

TEST(ExpertStoreErrorsTest, AChangedFileIsNoticed) {
  test::TempDir temp;
  test::TestCheckpoint model = test::TestCheckpoint::Read(DataDir("tiny"));
  model.Write(temp.path());
  const auto store = ExpertStore::Open(temp.path(), {});
  ASSERT_TRUE(store.ok()) << store.status();
  const std::string shard = temp.File(model.shards[0].file_name);
  test::WriteFile(shard, test::ReadFile(shard).substr(0, 4096));
  WorkerPool pool({.num_threads = 1});
  const absl::Status status = (*store)->Load(pool, [](uint64_t) { return true; });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(std::string(ToStd(status.message())).find(model.shards[0].file_name), std::string::npos)
      << status;
}

TEST(ExpertStoreErrorsTest, ShardThatDoesNotFit) {
  test::TempDir temp;
  test::TestCheckpoint model = test::TestCheckpoint::Read(DataDir("tiny"));
  const auto missing = ExpertStore::Open(temp.path(), {});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound) << missing.status();
  model.Remove("model.layers.2.mlp.experts.7.down_proj.weight");
  model.Write(temp.path());
  const auto incomplete = ExpertStore::Open(temp.path(), {});
  ASSERT_FALSE(incomplete.ok());
  EXPECT_NE(std::string(ToStd(incomplete.status().message()))
                .find("model.layers.2.mlp.experts.7.down_proj.weight"),
            std::string::npos)
      << incomplete.status();
}

// F32 experts beside bf16 ones: told as such, and used in place.
TEST(ExpertStoreErrorsTest, MixedFormats) {
  test::TempDir temp;
  test::TestCheckpoint model = test::TestCheckpoint::Read(DataDir("tiny"));
  test::TestTensor* const tensor = model.Find("model.layers.1.mlp.experts.3.up_proj.weight");
  std::string wide;
  for (size_t i = 0; i < tensor->bytes.size(); i += 2) {
    wide += std::string(2, '\0') + tensor->bytes.substr(i, 2);
  }
  tensor->bytes = wide;
  tensor->dtype = "F32";
  model.Write(temp.path());
  const auto store = ExpertStore::Open(temp.path(), {0, 2, ShardSplit::kWidth});
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->description().format, "mixed");
  const auto plain = ExpertStore::Open(DataDir("tiny"), {0, 2, ShardSplit::kWidth});
  ASSERT_TRUE(plain.ok());
  const WeightMatrix& wide_up = (*store)->table().layers[1][3].up_proj;
  EXPECT_EQ(wide_up.type, WeightType::kF32);
  EXPECT_EQ(Row(wide_up, 9, 128), Row((*plain)->table().layers[1][3].up_proj, 9, 128));
}

}  // namespace
}  // namespace banyan::expert
