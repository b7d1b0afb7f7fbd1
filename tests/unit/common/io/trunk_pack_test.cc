#include "common/io/trunk_pack.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

// A matrix of several pieces, one with codes, and one of a single row.
TrunkPackHeader MakeHeader() {
  TrunkPackHeader header;
  header.int8 = true;
  header.fingerprint = "0123456789abcdef0123456789abcdef";
  header.source_stamp = 0x1122334455667788;
  header.matrices = {{"model.layers.0.a.weight", DType::kBF16, 700, 1000, {}},
                     {"lm_head.weight", DType::kI8, 1100, 1030, {}},
                     {"b", DType::kF32, 1, 70, {}}};
  for (TrunkPackMatrix& matrix : header.matrices) {
    for (int64_t i = 0; i < matrix.num_checksums(); ++i) {
      matrix.checksums.push_back(static_cast<uint64_t>(i) << 60 | 7u);
    }
  }
  return header;
}

uint64_t FileBytes(const TrunkPackHeader& header) {
  return static_cast<uint64_t>(LayoutOf(header).file_bytes);
}

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

TEST(TrunkPackTest, HeaderGoesThroughUnchanged) {
  const TrunkPackHeader header = MakeHeader();
  const TrunkPackLayout layout = LayoutOf(header);
  const auto parsed = ParseTrunkPackHeader(EncodeTrunkPackHeader(header), FileBytes(header), "p");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->int8);
  EXPECT_EQ(parsed->fingerprint, header.fingerprint);
  EXPECT_EQ(parsed->source_stamp, header.source_stamp);
  ASSERT_EQ(parsed->matrices.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const TrunkPackMatrix& found = parsed->matrices[i];
    const TrunkPackMatrix& expected = header.matrices[i];
    EXPECT_EQ(found.name, expected.name);
    EXPECT_EQ(found.dtype, expected.dtype);
    EXPECT_EQ(found.rows, expected.rows);
    EXPECT_EQ(found.cols, expected.cols);
    EXPECT_EQ(found.checksums, expected.checksums);
    EXPECT_EQ(layout.places[i].values % 64, 0);
    EXPECT_EQ(layout.places[i].scales % 64, 0);
  }
  // 524 rows of 2000 bytes and 1018 of 1030 are the most below a mebibyte; 17 scales a row.
  EXPECT_EQ(header.matrices[0].num_checksums(), 2);
  EXPECT_EQ(header.matrices[1].num_checksums(), 4);
  EXPECT_EQ(layout.payload_offset, 2 << 20);
  EXPECT_EQ(layout.places[1].values, (2 << 20) + 700 * 1000 * 2);
  EXPECT_EQ(layout.places[1].scales, layout.places[1].values + (1100 * 1030 + 63) / 64 * 64);
  EXPECT_EQ(layout.places[2].values, layout.places[1].scales + (1100 * 17 * 4 + 63) / 64 * 64);
  EXPECT_EQ(layout.file_bytes, layout.places[2].values + 320);
}

TEST(TrunkPackTest, LendsMatricesAndNamesTheirPieces) {
  test::TempDir temp;
  const TrunkPackHeader header = MakeHeader();
  const TrunkPackLayout layout = LayoutOf(header);
  const std::vector<std::byte> encoded = EncodeTrunkPackHeader(header);
  std::string file(static_cast<size_t>(layout.file_bytes), '\0');
  std::memcpy(file.data(), encoded.data(), encoded.size());
  const float scale = 0.25f;
  file[static_cast<size_t>(layout.places[1].values) + 3] = 42;
  std::memcpy(file.data() + layout.places[1].scales, &scale, sizeof(scale));
  test::WriteFile(temp.File("p"), file);
  const auto opened = TrunkPack::Open(temp.File("p"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->Find("model.layers.0.b.weight"), nullptr);
  const TrunkPack::Matrix* const head = opened->Find("lm_head.weight");
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->values.shape, Shape({1100, 1030}));
  EXPECT_EQ(head->values.data[3], std::byte{42});
  EXPECT_EQ(head->scales[0], scale);
  EXPECT_EQ(opened->Find("b")->scales, nullptr);
  const std::vector<PackPiece> pieces = opened->Pieces();
  ASSERT_EQ(pieces.size(), 7u);
  uint64_t bytes = 0;
  for (const PackPiece& piece : pieces) bytes += piece.bytes;
  EXPECT_EQ(bytes, 700u * 2000 + 1100 * 1030 + 1100 * 17 * 4 + 280);
  EXPECT_EQ(opened->PieceName(1), "model.layers.0.a.weight rows 524 to 699");
  EXPECT_EQ(opened->PieceName(3), "lm_head.weight rows 1018 to 1099");
  EXPECT_EQ(opened->PieceName(5), "lm_head.weight scales, rows 1018 to 1099");
  EXPECT_EQ(opened->PieceName(6), "b rows 0 to 0");
}

// Every bit of every header byte, and every shorter length of the header and of the file.
TEST(TrunkPackTest, NoDamagedHeaderPasses) {
  const TrunkPackHeader header = MakeHeader();
  const std::vector<std::byte> sound = EncodeTrunkPackHeader(header);
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> bytes = sound;
      bytes[i] ^= static_cast<std::byte>(1 << bit);
      EXPECT_FALSE(ParseTrunkPackHeader(bytes, FileBytes(header), "p").ok()) << i << " " << bit;
    }
    EXPECT_FALSE(ParseTrunkPackHeader(std::span(sound).first(i), FileBytes(header), "p").ok());
  }
  const auto cut = ParseTrunkPackHeader(sound, FileBytes(header) - 1, "p");
  EXPECT_NE(Message(cut.status()).find("it was cut"), std::string::npos) << cut.status();
}

// Headers whose checksum is right and whose fields are not.
TEST(TrunkPackTest, ContradictoryFieldsAreNamed) {
  struct Case {
    size_t at;
    uint8_t value;
    const char* message;
  };
  const Case cases[] = {
      {8, 2, "pack version 2, this program reads version 1"},
      {32, 3, "trunk format 3"},
      {33, 1, "reserved"},
      {36, 4, "dtype 0, expected 1 to 3"},  // one matrix more than there is
      {36, 0, "matrices 0"},
      {40, 'G', "expected 32 hex digits"},
      {80, 1, "file size"},
      {88, 1, "payload offset"},
      {96, 9, "dtype 9"},
      {101, 9, "bytes of a name 2327"},
      {103 + 8, 0x80, "rows"},
      {96 + 8 + 3, 0x40, "checksums"},  // more rows than checksums
      {96 + 24, 1, "model.layers.0.a.weight: at"},
      {96 + 40, 3, "3 checksums, expected 2"},
      {96 + 48 + 23, 1, "does not fit the header"},  // behind the name
  };
  for (const Case& c : cases) {
    std::vector<std::byte> bytes = EncodeTrunkPackHeader(MakeHeader());
    bytes[c.at] = std::byte{c.value};
    const uint64_t checksum = PackChecksum(std::span(bytes).subspan(32));
    std::memcpy(bytes.data() + 24, &checksum, 8);
    const auto parsed = ParseTrunkPackHeader(bytes, FileBytes(MakeHeader()), "p");
    ASSERT_FALSE(parsed.ok()) << c.at;
    EXPECT_NE(Message(parsed.status()).find(c.message), std::string::npos)
        << c.at << ": " << parsed.status();
  }
}

}  // namespace
}  // namespace banyan
