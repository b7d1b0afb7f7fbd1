#include "common/config/open_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "common/config/tensor_inventory.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

std::string Tiny() { return std::string(BANYAN_SOURCE_DIR) + "/tests/data/tiny"; }

// config.json alone makes a complete model, and any part of it is the same as that of the whole.
TEST(OpenCheckpointTest, DummyIsCompleteAndTheSameInParts) {
  test::TempDir temp;
  std::filesystem::copy_file(Tiny() + "/config.json", temp.File("config.json"));
  const auto a = OpenModel(temp.path(), LoadFormat::kDummy);
  const auto b = OpenModel(temp.path(), LoadFormat::kDummy);
  ASSERT_TRUE(a.ok() && b.ok()) << a.status();
  const auto summary = CheckComplete(*a->checkpoint, a->config);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(a->checkpoint->fingerprint(), b->checkpoint->fingerprint());
  EXPECT_TRUE(a->checkpoint->CheckFilesUnchanged().ok());
  for (const auto* part : {"mlp.experts.3.down_proj.weight", "linear_attn.A_log"}) {
    const Checkpoint::Entry* const in_a =
        a->checkpoint->Find(std::string("model.layers.0.") + part);
    const Checkpoint::Entry* const in_b =
        b->checkpoint->Find(std::string("model.layers.0.") + part);
    ASSERT_TRUE(in_a != nullptr && in_b != nullptr) << part;
    const std::span<const std::byte> whole(in_a->view.data, in_a->view.size_bytes());
    a->checkpoint->Fill(whole);
    // Piece by piece in the other one, and through Read.
    const std::span<const std::byte> pieces(in_b->view.data, in_b->view.size_bytes());
    for (size_t i = 0; i < pieces.size(); i += 6) {
      b->checkpoint->Fill(pieces.subspan(i, std::min<size_t>(6, pieces.size() - i)));
    }
    EXPECT_EQ(std::memcmp(whole.data(), pieces.data(), whole.size()), 0) << part;
    std::vector<std::byte> read(whole.size());
    ASSERT_TRUE(b->checkpoint->Read(pieces, read).ok());
    EXPECT_EQ(std::memcmp(whole.data(), read.data(), whole.size()), 0) << part;
  }
}

TEST(OpenCheckpointTest, FilesAndDummyAreDifferentModels) {
  const auto files = OpenModel(Tiny(), LoadFormat::kAuto);
  const auto dummy = OpenModel(Tiny(), LoadFormat::kDummy);
  ASSERT_TRUE(files.ok() && dummy.ok());
  EXPECT_NE(files->checkpoint->fingerprint(), dummy->checkpoint->fingerprint());
  EXPECT_FALSE(ParseLoadFormat("gguf").ok());
}

}  // namespace
}  // namespace banyan
