#include "common/plan/tensor_classes.h"

#include <gtest/gtest.h>

#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"

namespace banyan {
namespace {

TEST(TensorClassesTest, EveryTensorOfTheDemoModelIsInOneClass) {
  const auto model = OpenModel(BANYAN_SOURCE_DIR "/deploy/models/demo", LoadFormat::kAuto);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto summary = CheckComplete(*model->checkpoint, model->config);
  ASSERT_TRUE(summary.ok());
  int64_t count = 0;
  uint64_t bytes = 0;
  uint64_t trunk = 0;
  uint64_t experts = 0;
  uint64_t unused = 0;
  for (const PlannedTensors& tensors :
       ClassifyTensors(*model->checkpoint, model->config, *summary)) {
    EXPECT_FALSE(tensors.name.empty() || tensors.formats.empty());
    count += tensors.count;
    bytes += tensors.bytes;
    if (tensors.destination == "trunk") trunk += tensors.bytes;
    if (tensors.destination == "experts") experts += tensors.bytes;
    if (tensors.destination.rfind("unused: ", 0) == 0) unused += tensors.bytes;
  }
  EXPECT_EQ(count, static_cast<int64_t>(model->checkpoint->entries().size()));
  EXPECT_EQ(bytes, trunk + experts + unused);
  EXPECT_EQ(trunk, static_cast<uint64_t>(summary->trunk_bytes));
  EXPECT_EQ(experts, static_cast<uint64_t>(summary->expert_bytes));
  EXPECT_EQ(unused, static_cast<uint64_t>(summary->mtp_bytes + summary->unused_bytes));

  const TrunkWeightSizes sizes = TrunkWeightSizesOf(*model->checkpoint, model->config);
  EXPECT_EQ(sizes.file_bytes, trunk);
  EXPECT_EQ(sizes.matrix_bytes() + sizes.table_bytes + sizes.vector_bytes(),
            static_cast<uint64_t>(summary->trunk_resident_bytes));
  EXPECT_LT(sizes.bytes_per_token, trunk);
  EXPECT_GT(sizes.bytes_per_token, trunk / 2);
}

TEST(TensorClassesTest, QuantisedModelsAreCountedAsTheyAreStoredAndKept) {
  for (const auto& [name, format] : {std::pair("tiny-nf4", "nf4"), std::pair("tiny-int8", "int8"),
                                     std::pair("tiny-fp8", "fp8")}) {
    SCOPED_TRACE(name);
    const auto model =
        OpenModel(std::string(BANYAN_SOURCE_DIR "/tests/data/") + name, LoadFormat::kAuto);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto summary = CheckComplete(*model->checkpoint, model->config);
    ASSERT_TRUE(summary.ok()) << summary.status();
    int64_t count = 0;
    for (const PlannedTensors& tensors :
         ClassifyTensors(*model->checkpoint, model->config, *summary)) {
      count += tensors.count;
      if (tensors.name == "routed experts") {
        EXPECT_EQ(tensors.formats, format);
      }
    }
    EXPECT_EQ(count, static_cast<int64_t>(model->checkpoint->entries().size()));
    const TrunkWeightSizes sizes = TrunkWeightSizesOf(*model->checkpoint, model->config);
    EXPECT_GT(sizes.decoded_bytes, 0u);
    EXPECT_EQ(sizes.matrix_bytes() + sizes.table_bytes + sizes.vector_bytes(),
              static_cast<uint64_t>(summary->trunk_resident_bytes));
  }
}

// What two devices keep is what one keeps, and once more what each of them has.
TEST(TensorClassesTest, PartsOfATrunkAreCountedApart) {
  for (const char* name : {"tests/data/tiny", "tests/data/tiny-nf4"}) {
    SCOPED_TRACE(name);
    const auto model = OpenModel(std::string(BANYAN_SOURCE_DIR "/") + name, LoadFormat::kAuto);
    ASSERT_TRUE(model.ok()) << model.status();
    for (const TrunkFormat format : {TrunkFormat::kBf16, TrunkFormat::kInt8}) {
      const auto of = [&](int32_t size) {
        return TrunkWeightSizesOf(*model->checkpoint, model->config, format, size);
      };
      const TrunkWeightSizes whole = of(1);
      const TrunkWeightSizes half = of(2);
      EXPECT_EQ(whole.sliced_bytes, 0u);
      EXPECT_EQ(half.table_bytes * 2, whole.table_bytes);
      EXPECT_EQ(half.matrices.size(), whole.matrices.size());
      EXPECT_LT(half.matrix_bytes(), whole.matrix_bytes());
      EXPECT_GT(half.matrix_bytes() * 2, whole.matrix_bytes());  // the router is everywhere
      EXPECT_GE(half.decoded_bytes * 2, whole.decoded_bytes);
      EXPECT_LT(half.bytes_per_token, whole.bytes_per_token);
      // out_proj and o_proj of the four layers, and the shared experts' down_proj, as bf16: where
      // they are neither decoded nor made to codes.
      const uint64_t columns = 128 * (4 * 128 + 256 - 128 + 4 * 64) * 2 / 2;
      if (format == TrunkFormat::kBf16 && whole.decoded_bytes == 0) {
        EXPECT_EQ(half.sliced_bytes, columns);
      }
    }
  }
}

}  // namespace
}  // namespace banyan
