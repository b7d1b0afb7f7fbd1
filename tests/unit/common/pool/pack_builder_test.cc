#include "common/pool/pack_builder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"
#include "common/pool/generated_expert.h"
#include "common/pool/pack_path.h"
#include "common/quant/packed_matrix.h"
#include "common/quant/reference.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

constexpr PoolFormat kFormats[] = {PoolFormat::kBF16, PoolFormat::kInt8, PoolFormat::kNF4,
                                   PoolFormat::kInt4};

std::string DataDir(const std::string& name) {
  return std::string(BANYAN_SOURCE_DIR) + "/tests/data/" + name;
}

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

bool Go(const PackProgress&) { return true; }

// A model and the requests for its packs.
class Model {
 public:
  explicit Model(const std::string& directory)
      : checkpoint_(*Checkpoint::Open(directory)), config_(*LoadModelConfig(directory)) {}
  PackRequest Request(PoolFormat format, const ShardSpec& shard, const std::string& dir) const {
    return {checkpoint_.get(), &config_, shard, format, dir};
  }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelConfig& config() const { return config_; }

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
};

// Rows [first_row, ...) and columns [first_col, ...) of a tensor.
std::vector<float> Part(const TensorView& view, int64_t first_row, int64_t rows, int64_t first_col,
                        int64_t cols) {
  const int64_t row_cols = view.shape.dim(1);
  std::vector<float> out;
  for (int64_t r = first_row; r < first_row + rows; ++r) {
    const std::vector<double> row =
        DequantizeRow({view.data, view.dtype, view.shape.dim(0), row_cols,
                       row_cols * static_cast<int64_t>(DTypeSizeBytes(view.dtype))},
                      r);
    for (int64_t c = first_col; c < first_col + cols; ++c) {
      out.push_back(static_cast<float>(row[static_cast<size_t>(c)]));
    }
  }
  return out;
}

// Every matrix of every expert of a pack holds what PackMatrix makes of the checkpoint's slice.
void ExpectPacked(const ExpertPack& pack, const Model& model) {
  const ExpertPackHeader& h = pack.header();
  const ExpertPackLayout& layout = pack.layout();
  int64_t idx = 0;
  for (const int32_t layer : h.moe_layers) {
    for (int32_t e = 0; e < h.num_shard_experts; ++e, ++idx) {
      const auto tensors =
          GetExpertTensors(model.checkpoint(), model.config(), layer, h.first_expert + e);
      ASSERT_TRUE(tensors.ok()) << tensors.status();
      const int64_t w = h.num_shard_width;
      const struct {
        std::vector<float> values;
        int64_t rows, cols, at;
      } matrices[] = {{Part(tensors->gate_proj.weight, h.first_width, w, 0, h.hidden_size), w,
                       h.hidden_size, 0},
                      {Part(tensors->up_proj.weight, h.first_width, w, 0, h.hidden_size), w,
                       h.hidden_size, layout.gate_bytes},
                      {Part(tensors->down_proj.weight, 0, h.hidden_size, h.first_width, w),
                       h.hidden_size, w, 2 * layout.gate_bytes}};
      for (const auto& m : matrices) {
        const auto bytes = static_cast<size_t>(PackedMatrixBytes(h.format, m.rows, m.cols));
        void* const expected = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        PackMatrix(h.format, {m.values.data(), m.rows, m.cols, m.cols},
                   static_cast<std::byte*>(expected));
        EXPECT_EQ(std::memcmp(expected, pack.Expert(idx).data() + m.at, bytes), 0)
            << pack.ExpertName(idx) << " at " << m.at;
        std::free(expected);
      }
    }
  }
}

class PackBuilderTest : public ::testing::Test {
 protected:
  std::string PathOf(const Model& model, PoolFormat format, const ShardSpec& shard) const {
    return PackPath(temp_.path(), model.checkpoint().fingerprint(), format, shard);
  }
  int NumFiles(const Model& model, const std::string& suffix) const {
    int count = 0;
    for (const auto& file : std::filesystem::directory_iterator(
             PackDirectory(temp_.path(), model.checkpoint().fingerprint()))) {
      count += file.path().string().ends_with(suffix) ? 1 : 0;
    }
    return count;
  }
  // A copy of the tiny model that the test may change.
  std::string Copy(const std::function<void(test::TestCheckpoint&)>& change = {}) {
    test::TestCheckpoint model = test::TestCheckpoint::Read(DataDir("tiny"));
    if (change) change(model);
    model.Write(source_.path());
    return source_.path();
  }

  test::TempDir temp_;
  test::TempDir source_;
  WorkerPool pool_{{.num_threads = 2}};
};

TEST_F(PackBuilderTest, EveryFormatAndShardHoldsItsSlice) {
  for (const char* name : {"tiny", "tiny-fused"}) {
    const Model model(DataDir(name));
    for (const PoolFormat format : kFormats) {
      for (const ShardSpec& shard :
           {ShardSpec{0, 1, ShardSplit::kWidth}, ShardSpec{1, 2, ShardSplit::kWidth},
            ShardSpec{2, 3, ShardSplit::kExperts}}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name, PoolFormatName(format), ShardText(shard)));
        const auto made = EnsurePack(model.Request(format, shard, temp_.path()), pool_, Go);
        if (format == PoolFormat::kNF4 && shard.num_shards == 2) {  // one block of 64 columns
          EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
          continue;
        }
        ASSERT_TRUE(made.ok()) << made.status();
        EXPECT_TRUE(made->built.has_value());
        ExpectPacked(made->pack, model);
        EXPECT_TRUE(VerifyPack(made->pack, pool_, Go).ok());
        const auto again = EnsurePack(model.Request(format, shard, temp_.path()), pool_, Go);
        ASSERT_TRUE(again.ok()) << again.status();
        EXPECT_FALSE(again->built.has_value());
        EXPECT_TRUE(again->rejected.ok());
      }
    }
    EXPECT_EQ(NumFiles(model, ".tmp"), 0);
  }
}

TEST_F(PackBuilderTest, AnF32CheckpointPacksToTheSameBytes) {
  const Model plain(DataDir("tiny"));
  const Model wide(Copy([](test::TestCheckpoint& model) {
    for (test::TestShard& shard : model.shards) {
      for (test::TestTensor& tensor : shard.tensors) {
        if (tensor.name.find(".mlp.experts.") == std::string::npos) continue;
        std::string bytes;
        for (size_t i = 0; i < tensor.bytes.size(); i += 2) {
          bytes += std::string(2, '\0') + tensor.bytes.substr(i, 2);
        }
        tensor.bytes = bytes;
        tensor.dtype = "F32";
      }
    }
  }));
  const auto a = EnsurePack(plain.Request(PoolFormat::kInt8, {}, temp_.path()), pool_, Go);
  const auto b = EnsurePack(wide.Request(PoolFormat::kInt8, {}, temp_.path()), pool_, Go);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(a->pack.header().fingerprint, b->pack.header().fingerprint);
  EXPECT_EQ(a->pack.header().checksums, b->pack.header().checksums);
}

TEST_F(PackBuilderTest, WhateverThreadsTheSameBytes) {
  const Model model(DataDir("tiny"));
  WorkerPool one({.num_threads = 1});
  test::TempDir other;
  ASSERT_TRUE(EnsurePack(model.Request(PoolFormat::kInt4, {}, temp_.path()), pool_, Go).ok());
  ASSERT_TRUE(EnsurePack(model.Request(PoolFormat::kInt4, {}, other.path()), one, Go).ok());
  EXPECT_EQ(test::ReadFile(PathOf(model, PoolFormat::kInt4, {})),
            test::ReadFile(
                PackPath(other.path(), model.checkpoint().fingerprint(), PoolFormat::kInt4, {})));
}

TEST_F(PackBuilderTest, WhatIsDamagedOrStaleIsPackedAgainAndWhatIsForeignStays) {
  const std::string directory = Copy();
  const ShardSpec shard{0, 2, ShardSplit::kWidth};
  std::string sound;
  const auto reject = [&](const std::string& part) {
    const Model model(directory);
    const auto made = EnsurePack(model.Request(PoolFormat::kInt8, shard, temp_.path()), pool_, Go);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_TRUE(made->built.has_value()) << part;
    EXPECT_NE(Message(made->rejected).find(part), std::string::npos) << made->rejected;
    ExpectPacked(made->pack, model);
  };
  const auto refuse = [&](const std::string& path, const std::string& part) {
    const Model model(directory);
    const std::string before = test::ReadFile(path);
    const PackRequest request = model.Request(PoolFormat::kInt8, shard, temp_.path());
    const auto made = EnsurePack(request, pool_, Go);
    EXPECT_NE(Message(made.status()).find(part), std::string::npos) << made.status();
    EXPECT_NE(Message(made.status()).find(path), std::string::npos) << made.status();
    EXPECT_NE(Message(made.status()).find("it is not replaced"), std::string::npos);
    EXPECT_EQ(test::ReadFile(path), before);
    EXPECT_EQ(NumFiles(model, ".tmp"), 0);
    const auto rebuilt = EnsurePack(request, pool_, Go, /*rebuild=*/true);
    ASSERT_TRUE(rebuilt.ok()) << rebuilt.status();
    ExpectPacked(rebuilt->pack, model);
  };
  reject("");  // nothing was there
  const Model model(directory);
  const std::string path = PathOf(model, PoolFormat::kInt8, shard);
  sound = test::ReadFile(path);
  test::WriteFile(path, sound.substr(0, sound.size() - 1));
  reject("it was cut");
  test::WriteFile(path, "");
  reject("too short");
  std::string damaged = sound;
  damaged[100] ^= 1;
  test::WriteFile(path, damaged);
  reject("the header is damaged");
  damaged = sound;
  damaged[8] = 9;
  test::WriteFile(path, damaged);
  refuse(path, "pack version 9");

  ASSERT_TRUE(EnsurePack(model.Request(PoolFormat::kInt4, shard, temp_.path()), pool_, Go).ok());
  std::filesystem::copy_file(PathOf(model, PoolFormat::kInt4, shard), path,
                             std::filesystem::copy_options::overwrite_existing);
  refuse(path, "pool format int4, expected int8");
  const ShardSpec other{1, 2, ShardSplit::kWidth};
  ASSERT_TRUE(EnsurePack(model.Request(PoolFormat::kInt8, other, temp_.path()), pool_, Go).ok());
  std::filesystem::copy_file(PathOf(model, PoolFormat::kInt8, other), path,
                             std::filesystem::copy_options::overwrite_existing);
  refuse(path, "of shard width-1of2, expected width-0of2");
  const Model stranger(DataDir("tiny-fused"));
  ASSERT_TRUE(EnsurePack(stranger.Request(PoolFormat::kInt8, shard, temp_.path()), pool_, Go).ok());
  std::filesystem::copy_file(PathOf(stranger, PoolFormat::kInt8, shard), path,
                             std::filesystem::copy_options::overwrite_existing);
  refuse(path, "of the model with fingerprint");

  // One weight changes and no header does.
  test::TestCheckpoint changed = test::TestCheckpoint::Read(directory);
  changed.Find("model.layers.1.mlp.experts.3.up_proj.weight")->bytes[0] ^= 1;
  changed.Write(directory);
  reject("were rewritten");
}

TEST_F(PackBuilderTest, VerifyNamesTheDamagedExpert) {
  const Model model(DataDir("tiny"));
  auto made = EnsurePack(model.Request(PoolFormat::kInt8, {}, temp_.path()), pool_, Go);
  ASSERT_TRUE(made.ok()) << made.status();
  const std::string path = made->pack.path();
  const ExpertPackLayout layout = made->pack.layout();
  std::string bytes = test::ReadFile(path);
  bytes[static_cast<size_t>(layout.ExpertOffset(16 * 2 + 7) + 1000)] ^= 4;
  bytes[static_cast<size_t>(layout.ExpertOffset(16 * 3 + 1))] ^= 4;
  test::WriteFile(path, bytes);
  const auto pack = ExpertPack::Open(path);
  ASSERT_TRUE(pack.ok()) << pack.status();
  const absl::Status status = VerifyPack(*pack, pool_, Go);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(Message(status).find("layer 2 expert 7 is damaged"), std::string::npos) << status;
  EXPECT_NE(Message(status).find("2 of 64 experts"), std::string::npos) << status;
}

TEST_F(PackBuilderTest, StoppingLeavesTheOldPackAndNothingElse) {
  const Model model(DataDir("tiny"));
  const PackRequest request = model.Request(PoolFormat::kInt8, {}, temp_.path());
  ASSERT_TRUE(EnsurePack(request, pool_, Go).ok());
  const std::string before = test::ReadFile(PathOf(model, PoolFormat::kInt8, {}));
  for (const int last : {1, 2, 9, 15}) {
    int calls = 0;
    const auto stopped = EnsurePack(
        request, pool_, [&](const PackProgress&) { return ++calls < last; }, /*rebuild=*/true);
    EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled) << stopped.status();
    EXPECT_EQ(NumFiles(model, ".tmp"), 0);
    EXPECT_EQ(test::ReadFile(PathOf(model, PoolFormat::kInt8, {})), before);
  }
}

TEST_F(PackBuilderTest, AFullDiskLeavesTheOldPackAndNothingElse) {
  const Model model(DataDir("tiny"));
  const PackRequest request = model.Request(PoolFormat::kInt8, {}, temp_.path());
  ASSERT_TRUE(EnsurePack(request, pool_, Go).ok());
  const std::string before = test::ReadFile(PathOf(model, PoolFormat::kInt8, {}));
  ASSERT_NE(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{1 << 20, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto made = EnsurePack(request, pool_, Go, /*rebuild=*/true);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kResourceExhausted) << made.status();
  EXPECT_NE(Message(made.status()).find("the pack needs"), std::string::npos) << made.status();
  EXPECT_EQ(NumFiles(model, ".tmp"), 0);
  EXPECT_EQ(test::ReadFile(PathOf(model, PoolFormat::kInt8, {})), before);
}

TEST_F(PackBuilderTest, AWeightThatIsNotFiniteIsNamed) {
  const Model model(Copy([](test::TestCheckpoint& changed) {
    std::string& bytes = changed.Find("model.layers.2.mlp.experts.9.down_proj.weight")->bytes;
    bytes[2 * (64 * 5 + 40)] = '\x80';  // row 5, column 40: infinity in bf16
    bytes[2 * (64 * 5 + 40) + 1] = '\x7f';
  }));
  const auto whole = EnsurePack(model.Request(PoolFormat::kInt8, {}, temp_.path()), pool_, Go);
  EXPECT_EQ(whole.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(Message(whole.status())
                .find("layer 2 expert 9: "
                      "model.layers.2.mlp.experts.9.down_proj.weight[5, 40] is inf"),
            std::string::npos)
      << whole.status();
  const auto half = EnsurePack(
      model.Request(PoolFormat::kInt8, {1, 2, ShardSplit::kWidth}, temp_.path()), pool_, Go);
  EXPECT_NE(Message(half.status()).find("down_proj.weight[5, 40]"), std::string::npos)
      << half.status();
  EXPECT_EQ(NumFiles(model, ".tmp") + NumFiles(model, ".pack"), 0);
}

TEST_F(PackBuilderTest, ACheckpointCutMeanwhileIsAnError) {
  const std::string directory = Copy();
  const Model model(directory);
  const std::string shard = directory + "/" + model.checkpoint().files()[1];
  test::WriteFile(shard, test::ReadFile(shard).substr(0, 5000));
  const auto made = EnsurePack(model.Request(PoolFormat::kInt8, {}, temp_.path()), pool_, Go);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kDataLoss) << made.status();
  EXPECT_NE(Message(made.status()).find(model.checkpoint().files()[1]), std::string::npos);
  EXPECT_EQ(NumFiles(model, ".tmp"), 0);
}

TEST_F(PackBuilderTest, WhatAKilledRunLeftIsRemoved) {
  const Model model(DataDir("tiny"));
  const std::string folder = PackDirectory(temp_.path(), model.checkpoint().fingerprint());
  std::filesystem::create_directories(folder);
  test::WriteFile(folder + "/int8-width-0of1.pack.tmp", "half");
  test::WriteFile(folder + "/int4-width-3of7.pack.tmp", "half");
  test::WriteFile(folder + "/notes.tmp", "somebody else's");
  ASSERT_TRUE(EnsurePack(model.Request(PoolFormat::kInt8, {}, temp_.path()), pool_, Go).ok());
  EXPECT_EQ(NumFiles(model, ".pack.tmp"), 0);
  EXPECT_EQ(NumFiles(model, "notes.tmp"), 1);
}

TEST_F(PackBuilderTest, TwoAtOnceMakeOnePack) {
  const Model model(DataDir("tiny"));
  int built = 0;
  std::atomic<int> total{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      WorkerPool own({.num_threads = 1});
      const auto made = EnsurePack(model.Request(PoolFormat::kInt8, {}, temp_.path()), own, Go);
      ASSERT_TRUE(made.ok()) << made.status();
      if (made->built) ++total;
    });
  }
  for (std::thread& thread : threads) thread.join();
  built = total;
  EXPECT_EQ(built, 1);
}

TEST_F(PackBuilderTest, AFolderThatCannotBeMadeIsNamed) {
  const Model model(DataDir("tiny"));
  test::WriteFile(temp_.File("file"), "");
  const auto made = EnsurePack(model.Request(PoolFormat::kInt8, {}, temp_.File("file")), pool_, Go);
  ASSERT_FALSE(made.ok());
  EXPECT_NE(Message(made.status()).find("--pool_dir: " + temp_.File("file")), std::string::npos)
      << made.status();
}

// Of a dummy model: the quantised experts that any host of any shard generates for itself.
TEST_F(PackBuilderTest, ADummyPackHoldsTheGeneratedExperts) {
  const auto dummy = OpenModel(DataDir("tiny"), LoadFormat::kDummy);
  ASSERT_TRUE(dummy.ok()) << dummy.status();
  WorkerPool pool({.num_threads = 2});
  for (const PoolFormat format : {PoolFormat::kInt8, PoolFormat::kInt4}) {
    std::vector<float> halves[2];
    for (const int32_t index : {0, 1}) {
      const PackRequest request = {dummy->checkpoint.get(),
                                   &dummy->config,
                                   {index, 2, ShardSplit::kWidth},
                                   format,
                                   temp_.path()};
      EXPECT_TRUE(absl::IsNotFound(OpenPack(request).status()));
      const auto made = EnsurePack(request, pool, Go);
      ASSERT_TRUE(made.ok()) << made.status();
      const ExpertPackHeader& header = made->pack.header();
      const auto bytes = static_cast<size_t>(made->pack.layout().expert_bytes);
      std::vector<std::byte> expert(bytes);
      for (int64_t i = 0; i < header.num_packed_experts(); ++i) {
        ASSERT_TRUE(
            GenerateExpert(*dummy->checkpoint, dummy->config, header, i, expert.data()).ok());
        ASSERT_EQ(std::memcmp(expert.data(), made->pack.Expert(i).data(), bytes), 0) << i;
      }
      EXPECT_TRUE(OpenPack(request).ok());
      // down_proj of the last expert: [hidden_size][width of the shard]
      halves[index].resize(static_cast<size_t>(header.hidden_size) * header.num_shard_width);
      UnpackMatrix(format, expert.data() + 2 * made->pack.layout().gate_bytes, header.hidden_size,
                   header.num_shard_width, halves[index].data());
    }
    const ShardSpec all = {0, 1, ShardSplit::kWidth};
    const auto whole =
        WantedPackHeader({dummy->checkpoint.get(), &dummy->config, all, format, temp_.path()});
    ASSERT_TRUE(whole.ok()) << whole.status();
    const ExpertPackLayout layout = LayoutOf(*whole);
    std::vector<std::byte> expert(static_cast<size_t>(layout.expert_bytes));
    ASSERT_TRUE(GenerateExpert(*dummy->checkpoint, dummy->config, *whole,
                               whole->num_packed_experts() - 1, expert.data())
                    .ok());
    const int64_t width = whole->num_shard_width;
    std::vector<float> down(static_cast<size_t>(whole->hidden_size * width));
    UnpackMatrix(format, expert.data() + 2 * layout.gate_bytes, whole->hidden_size, width,
                 down.data());
    for (int64_t o = 0; o < whole->hidden_size; ++o) {
      for (int64_t i = 0; i < width; ++i) {
        const std::vector<float>& half = halves[i >= width / 2 ? 1 : 0];
        ASSERT_EQ(down[static_cast<size_t>(o * width + i)],
                  half[static_cast<size_t>(o * width / 2 + i % (width / 2))])
            << o << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace banyan
