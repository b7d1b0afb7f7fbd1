#include "common/io/mapped_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using ::testing::HasSubstr;

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(MappedFile, MapsReadsAndMoves) {
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), "0123456789");
  auto opened = MappedFile::Open(temp.File("a"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(Text(opened->bytes()), "0123456789");
  const std::byte* const address = opened->bytes().data();
  MappedFile moved = *std::move(opened);
  EXPECT_EQ(moved.bytes().data(), address);
  EXPECT_EQ(moved.path(), temp.File("a"));

  std::vector<std::byte> out(4);
  ASSERT_TRUE(moved.Read(6, out).ok());
  EXPECT_EQ(Text(out), "6789");
  EXPECT_EQ(
      moved.Read(7, out).message(),
      fmt::format("{}: 4 bytes wanted at offset 7, but the file has 10 bytes", temp.File("a")));
  EXPECT_EQ(moved.Read(UINT64_MAX, out).code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(moved.Read(10, {}).ok());

  test::WriteFile(temp.File("b"), "xyz");
  auto other = MappedFile::Open(temp.File("b"));
  ASSERT_TRUE(other.ok());
  moved = *std::move(other);
  EXPECT_EQ(Text(moved.bytes()), "xyz");
  EXPECT_TRUE(moved.CheckUnchanged().ok());
  MappedFile::Prefetch(moved.bytes().subspan(1));
  MappedFile::Prefetch({});
}

TEST(MappedFile, OfADescriptor) {
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), "0123456789");
  const auto file = MappedFile::OfDescriptor(
      FileDescriptor(open(temp.File("a").c_str(), O_RDONLY | O_CLOEXEC)), "a file");
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::remove(temp.File("a"));
  EXPECT_EQ(Text(file->bytes()), "0123456789");
  EXPECT_EQ(file->path(), "a file");
  const auto error = [](FileDescriptor other) {
    return std::string(MappedFile::OfDescriptor(std::move(other), "a file").status().message());
  };
  EXPECT_EQ(error(FileDescriptor(open(temp.path().c_str(), O_RDONLY | O_CLOEXEC))),
            "a file: not a regular file");
  EXPECT_EQ(error(FileDescriptor(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))),
            "a file: not a regular file");
  EXPECT_EQ(error(FileDescriptor()), "a file: fstat: Bad file descriptor");
  test::WriteFile(temp.File("b"), "x");
  EXPECT_EQ(error(FileDescriptor(open(temp.File("b").c_str(), O_WRONLY | O_CLOEXEC))),
            "a file: mmap: Permission denied");
}

TEST(MappedFile, EmptyFileIsFine) {
  const test::TempDir temp;
  test::WriteFile(temp.File("empty"), "");
  const auto file = MappedFile::Open(temp.File("empty"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->bytes().empty());
  EXPECT_TRUE(file->CheckUnchanged().ok());
}

TEST(MappedFile, RefusesWhatIsNotAFile) {
  const test::TempDir temp;
  const auto absent = MappedFile::Open(temp.File("absent"));
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(absent.status().message(), HasSubstr("absent: open: No such file or directory"));
  const auto directory = MappedFile::Open(temp.path());
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(directory.status().message(), HasSubstr("not a regular file"));
  // Must neither hang nor map.
  ASSERT_EQ(::mkfifo(temp.File("fifo").c_str(), 0600), 0);
  EXPECT_THAT(MappedFile::Open(temp.File("fifo")).status().message(),
              HasSubstr("not a regular file"));
}

TEST(MappedFile, SeesThatTheFileShrank) {
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), std::string(10'000, 'x'));
  const auto file = MappedFile::Open(temp.File("a"));
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(::truncate(temp.File("a").c_str(), 5000), 0);
  std::vector<std::byte> out(10'000);
  EXPECT_EQ(file->Read(0, out).message(),
            fmt::format("{}: ends at byte 5000, although it had 10000 bytes when opened",
                        temp.File("a")));
  EXPECT_THAT(file->CheckUnchanged().message(), HasSubstr("has 5000 bytes now, had 10000"));
}

TEST(MappedFile, SeesThatTheFileWasRewritten) {
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), "before");
  const auto file = MappedFile::Open(temp.File("a"));
  ASSERT_TRUE(file.ok());
  const auto time = std::filesystem::last_write_time(temp.File("a"));
  std::filesystem::last_write_time(temp.File("a"), time + std::chrono::seconds(1));
  EXPECT_THAT(file->CheckUnchanged().message(), HasSubstr("was modified while in use"));
}

TEST(ReadTextFile, LimitsItsSize) {
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), "12345");
  EXPECT_EQ(ReadTextFile(temp.File("a"), 5).value(), "12345");
  const auto large = ReadTextFile(temp.File("a"), 4);
  EXPECT_EQ(large.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(large.status().message(), HasSubstr("5 bytes, expected at most 4"));
}

}  // namespace
}  // namespace banyan
