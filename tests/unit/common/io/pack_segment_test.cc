#include "common/io/pack_segment.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

// An image of `file_bytes` and its last page.
std::string Segment(int64_t file_bytes) {
  std::string out(static_cast<size_t>(PackSegmentBytes(file_bytes)), 'x');
  const PackSegmentTrailer trailer = MakePackSegmentTrailer(file_bytes, {});
  std::memcpy(out.data() + out.size() - kPackSegmentPageBytes, &trailer, sizeof(trailer));
  return out;
}

std::optional<uint64_t> PackBytesOf(const std::string& bytes) {
  const test::TempDir temp;
  test::WriteFile(temp.File("s"), bytes);
  const auto file = MappedFile::Open(temp.File("s"));
  EXPECT_TRUE(file.ok()) << file.status();
  return PackBytesOfSegment(*file);
}

TEST(PackSegmentTest, TellsTheSizeOfThePack) {
  EXPECT_EQ(PackSegmentBytes(1), 2 * 4096);
  EXPECT_EQ(PackSegmentBytes(4096), 2 * 4096);
  EXPECT_EQ(PackSegmentBytes(4097), 3 * 4096);
  for (const int64_t bytes : {1, 4095, 4096, 4097, 100000}) {
    EXPECT_EQ(PackBytesOf(Segment(bytes)), static_cast<uint64_t>(bytes));
  }
}

TEST(PackSegmentTest, OtherFilesAreNone) {
  EXPECT_EQ(PackBytesOf(""), std::nullopt);
  EXPECT_EQ(PackBytesOf("short"), std::nullopt);
  EXPECT_EQ(PackBytesOf(std::string(3 * 4096, 'x')), std::nullopt);
  const std::string sound = Segment(5000);
  EXPECT_EQ(PackBytesOf(sound.substr(4096)), std::nullopt);
  EXPECT_EQ(PackBytesOf(sound + std::string(4096, '\0')), std::nullopt);
  const size_t trailer = sound.size() - 4096;
  // Of magic, version and size.
  for (const size_t at : {0, 7, 8, 15, 16 + 1, 16 + 2, 16 + 7}) {
    std::string bytes = sound;
    bytes[trailer + at] = static_cast<char>(bytes[trailer + at] ^ 0x80);
    EXPECT_EQ(PackBytesOf(bytes), std::nullopt) << at;
  }
}

}  // namespace
}  // namespace banyan
