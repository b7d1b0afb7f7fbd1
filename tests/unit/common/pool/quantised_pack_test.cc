// Packs of quantised checkpoints: no second rounding. What a pool holds, decoded, are the values
// that the library dequantises to, bit for bit, whole and in slices.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "common/config/stored_matrix.h"
#include "common/config/tensor_inventory.h"
#include "common/pool/own_format.h"
#include "common/pool/pack_builder.h"
#include "common/quant/packed_matrix.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

bool Go(const PackProgress&) { return true; }

std::string DataDir(const std::string& name) {
  return std::string(BANYAN_SOURCE_DIR "/tests/data/") + name;
}

class QuantisedPackTest : public ::testing::Test {
 protected:
  void Open(const std::string& directory) {
    auto checkpoint = Checkpoint::Open(directory);
    auto config = LoadModelConfig(directory);
    ASSERT_TRUE(checkpoint.ok() && config.ok()) << checkpoint.status() << config.status();
    checkpoint_ = *std::move(checkpoint);
    config_ = *std::move(config);
  }

  std::optional<PoolFormat> Own() const {
    const auto summary = CheckComplete(*checkpoint_, config_);
    EXPECT_TRUE(summary.ok()) << summary.status();
    const auto own = OwnPoolFormat(*checkpoint_, config_, *summary);
    EXPECT_TRUE(own.ok()) << own.status();
    return own.value_or(std::nullopt);
  }

  absl::StatusOr<PackResult> Pack(PoolFormat format, const ShardSpec& shard = {}) {
    return EnsurePack({checkpoint_.get(), &config_, shard, format, temp_.path()}, pool_, Go);
  }

  // Rows and columns of a matrix as the library has them.
  std::vector<float> Values(const StoredMatrix& matrix, int64_t first_row, int64_t rows,
                            int64_t first_col, int64_t cols) const {
    const auto decoder = MatrixDecoder::Create(*checkpoint_, matrix);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    std::vector<float> row(static_cast<size_t>(matrix.cols));
    std::vector<float> out;
    for (int64_t r = first_row; r < first_row + rows; ++r) {
      decoder->DecodeRows(r, 1, decoder->RowBytes(r, 1).data(), row.data());
      out.insert(out.end(), row.begin() + first_col, row.begin() + first_col + cols);
    }
    return out;
  }

  void ExpectExact(const ExpertPack& pack) const {
    const ExpertPackHeader& h = pack.header();
    const ExpertPackLayout& layout = pack.layout();
    int64_t idx = 0;
    for (const int32_t layer : h.moe_layers) {
      for (int32_t e = 0; e < h.num_shard_experts; ++e, ++idx) {
        const auto tensors = GetExpertTensors(*checkpoint_, config_, layer, h.first_expert + e);
        ASSERT_TRUE(tensors.ok()) << tensors.status();
        const int64_t w = h.num_shard_width;
        const struct {
          std::vector<float> values;
          int64_t rows, cols, at;
        } matrices[] = {
            {Values(tensors->gate_proj, h.first_width, w, 0, h.hidden_size), w, h.hidden_size, 0},
            {Values(tensors->up_proj, h.first_width, w, 0, h.hidden_size), w, h.hidden_size,
             layout.gate_bytes},
            {Values(tensors->down_proj, 0, h.hidden_size, h.first_width, w), h.hidden_size, w,
             2 * layout.gate_bytes}};
        for (const auto& m : matrices) {
          std::vector<float> unpacked(m.values.size());
          UnpackMatrix(h.format, pack.Expert(idx).data() + m.at, m.rows, m.cols, unpacked.data());
          ASSERT_EQ(std::memcmp(unpacked.data(), m.values.data(), unpacked.size() * 4), 0)
              << pack.ExpertName(idx) << " at " << m.at;
        }
      }
    }
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
  test::TempDir temp_;
  test::TempDir source_;
  WorkerPool pool_{{.num_threads = 2}};
};

TEST_F(QuantisedPackTest, NF4KeepsItsCodes) {
  for (const char* name : {"tiny-nf4", "tiny-nf4-single", "quantised/deep"}) {
    Open(DataDir(name));
    ASSERT_EQ(Own(), PoolFormat::kNF4) << name;
    for (const ShardSpec& shard :
         {ShardSpec{0, 1, ShardSplit::kWidth}, ShardSpec{1, 3, ShardSplit::kExperts}}) {
      const auto made = Pack(PoolFormat::kNF4, shard);
      ASSERT_TRUE(made.ok()) << made.status();
      ExpectExact(made->pack);
    }
    // A slice that would cut a block is refused with the numbers.
    const auto cut = Pack(PoolFormat::kNF4, {0, 2, ShardSplit::kWidth});
    EXPECT_EQ(cut.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(ToStd(cut.status().message()).find("64 columns per expert, 1 groups of 64"),
              std::string_view::npos)
        << cut.status();
  }
}

TEST_F(QuantisedPackTest, AnythingElseIsExactInBF16) {
  for (const char* name : {"tiny-int8", "tiny-fp8", "quantised/wide"}) {
    Open(DataDir(name));
    ASSERT_EQ(Own(), PoolFormat::kBF16) << name;
    for (const ShardSpec& shard :
         {ShardSpec{0, 1, ShardSplit::kWidth}, ShardSpec{1, 3, ShardSplit::kWidth},
          ShardSpec{2, 3, ShardSplit::kExperts}}) {
      const auto made = Pack(PoolFormat::kBF16, shard);
      ASSERT_TRUE(made.ok()) << made.status();
      ExpectExact(made->pack);
    }
  }
}

// An nf4 checkpoint in a bf16 pool is as exact, and may be cut anywhere.
TEST_F(QuantisedPackTest, NF4InBF16) {
  Open(DataDir("tiny-nf4"));
  const auto made = Pack(PoolFormat::kBF16, {2, 5, ShardSplit::kWidth});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_NE(made->pack.header().first_width % 2, 0);  // the slice begins within a byte of codes
  ExpectExact(made->pack);
}

TEST_F(QuantisedPackTest, PlainExpertsNeedNoPack) {
  Open(DataDir("tiny"));
  EXPECT_EQ(Own(), std::nullopt);
}

TEST_F(QuantisedPackTest, AMixtureIsBF16) {
  test::TestCheckpoint model = test::TestCheckpoint::Read(DataDir("tiny-nf4"));
  const test::TestCheckpoint plain = test::TestCheckpoint::Read(DataDir("tiny"));
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";
  for (const auto& shard : plain.shards) {
    for (const auto& tensor : shard.tensors) {
      if (tensor.name != name) continue;
      for (auto& to : model.shards) {
        std::erase_if(to.tensors,
                      [&](const test::TestTensor& t) { return t.name.starts_with(name); });
      }
      model.shards[0].tensors.push_back(tensor);
    }
  }
  model.index_json.reset();
  model.Write(source_.path());
  Open(source_.path());
  ASSERT_EQ(Own(), PoolFormat::kBF16);
  const auto made = Pack(PoolFormat::kBF16);
  ASSERT_TRUE(made.ok()) << made.status();
  ExpectExact(made->pack);
}

// The builder looks at every expert, not only at those that the format was chosen by.
TEST_F(QuantisedPackTest, AnExpertThatIsNotKeptIsNamed) {
  test::TestCheckpoint model = test::TestCheckpoint::Read(DataDir("tiny-nf4"));
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";
  std::string& map = model.Find(name + ".quant_map")->bytes;
  map[4 * 8] = static_cast<char>(map[4 * 8] ^ 1);  // still in order
  model.Write(source_.path());
  Open(source_.path());
  ASSERT_EQ(Own(), PoolFormat::kNF4);
  const auto made = Pack(PoolFormat::kNF4);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(ToStd(made.status().message())
                .find("layer 1 expert 3: " + name +
                      " cannot be kept in an nf4 pool: its quant_map is not the NF4 table; use "
                      "--pool_format bf16"),
            std::string_view::npos)
      << made.status();
  const auto bf16 = Pack(PoolFormat::kBF16);
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  ExpectExact(bf16->pack);
}

}  // namespace
}  // namespace banyan
