// What a trunk pack holds is what a load without one computes, bit for bit.
#include "services/trunk/model/trunk_pack_builder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "common/config/stored_matrix.h"
#include "common/config/tensor_inventory.h"
#include "services/trunk/model/decoded_matrix.h"
#include "services/trunk/ops/cpu/cpu_backend.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::trunk {
namespace {

bool Go(const PackProgress&) { return true; }

class TrunkPackBuilderTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string directory = std::string(BANYAN_SOURCE_DIR "/tests/data/") + GetParam();
    auto config = LoadModelConfig(directory);
    auto checkpoint = Checkpoint::Open(directory);
    ASSERT_TRUE(config.ok() && checkpoint.ok()) << config.status() << checkpoint.status();
    config_ = *std::move(config);
    checkpoint_ = *std::move(checkpoint);
  }

  TrunkPackRequest Request(TrunkFormat format) const {
    return {checkpoint_.get(), &config_, format, temp_.path()};
  }

  // Every matrix of the trunk: in the pack, or used as it is stored.
  void ExpectExact(TrunkFormat format) {
    const TrunkPackRequest request = Request(format);
    const auto wanted = WantedTrunkPackHeader(request);
    ASSERT_TRUE(wanted.ok()) << wanted.status();
    if (wanted->matrices.empty()) {
      EXPECT_EQ(format, TrunkFormat::kBf16);
      return;
    }
    const auto made = EnsureTrunkPack(request, *wanted, pool_, Go);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_TRUE(made->built.has_value());
    EXPECT_TRUE(VerifyTrunkPack(made->pack, pool_, Go).ok());
    auto backend = CreateCpuBackend({}, &pool_);
    ASSERT_TRUE(backend.ok()) << backend.status();
    size_t num_packed = 0;
    for (const TensorSpec& spec : TrunkTensors(config_)) {
      if (spec.shape.rank() != 2) continue;
      const auto stored = FindStoredMatrix(*checkpoint_, spec.name, spec.shape);
      ASSERT_TRUE(stored.ok()) << stored.status();
      const TrunkPack::Matrix* const packed = made->pack.Find(spec.name);
      const bool codes = format == TrunkFormat::kInt8 && !IsKeptAsStored(spec.name);
      const bool plain =
          stored->format == StoredFormat::kBF16 || stored->format == StoredFormat::kF32;
      ASSERT_EQ(packed != nullptr, codes || !plain) << spec.name;
      if (packed == nullptr) continue;
      ++num_packed;
      const auto decoded = DecodeMatrix(*checkpoint_, *stored, nullptr);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      const TensorView& values = packed->values;
      ASSERT_EQ(values.shape, spec.shape);
      if (!codes) {
        ASSERT_EQ(values.dtype, decoded->view.dtype);
        EXPECT_EQ(std::memcmp(values.data, decoded->view.data, values.size_bytes()), 0)
            << spec.name;
        continue;
      }
      const auto expected = (*backend)->PlaceInt8Matrix(decoded->view);
      ASSERT_TRUE(expected.ok()) << expected.status();
      EXPECT_EQ(std::memcmp(values.data, expected->data, values.size_bytes()), 0) << spec.name;
      const auto num_scales = static_cast<size_t>(expected->rows * Int8Groups(expected->cols));
      EXPECT_EQ(std::memcmp(packed->scales, expected->scales, num_scales * sizeof(float)), 0)
          << spec.name;
    }
    EXPECT_EQ(num_packed, made->pack.header().matrices.size());

    const auto again = EnsureTrunkPack(request, *wanted, pool_, Go);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_FALSE(again->built.has_value());
  }

  test::TempDir temp_;
  WorkerPool pool_{{.num_threads = 3}};
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(TrunkPackBuilderTest, HoldsWhatALoadWithoutOneComputes) {
  ExpectExact(TrunkFormat::kBf16);
  ExpectExact(TrunkFormat::kInt8);
}

TEST_P(TrunkPackBuilderTest, StopsWhenAskedAndLeavesNothing) {
  const TrunkPackRequest request = Request(TrunkFormat::kInt8);
  const auto wanted = WantedTrunkPackHeader(request);
  ASSERT_TRUE(wanted.ok()) << wanted.status();
  int calls = 0;
  const auto made = EnsureTrunkPack(request, *wanted, pool_,
                                    [&calls](const PackProgress&) { return ++calls < 3; });
  EXPECT_TRUE(absl::IsCancelled(made.status())) << made.status();
  for (const auto& file : std::filesystem::recursive_directory_iterator(temp_.path())) {
    EXPECT_TRUE(file.is_directory() || file.path().extension() == ".lock") << file.path();
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TrunkPackBuilderTest,
                         ::testing::Values("tiny", "tiny-nf4", "tiny-nf4-single", "tiny-int8",
                                           "tiny-fp8", "quantised/wide", "quantised/deep"));

}  // namespace
}  // namespace banyan::trunk
