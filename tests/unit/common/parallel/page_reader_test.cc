#include "common/parallel/page_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "common/io/mapped_file.h"
#include "common/io/read_ahead.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

constexpr size_t kBytes = (20u << 20) + 123;

class PageReader : public ::testing::Test {
 protected:
  void SetUp() override {
    test::WriteFile(temp_.File("file"), std::string(kBytes, 'x'));
    auto opened = MappedFile::Open(temp_.File("file"));
    ASSERT_TRUE(opened.ok()) << opened.status();
    file_.emplace(*std::move(opened));
  }
  // Pages of the mapping that are resident.
  size_t Resident() const {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<unsigned char> in_core((kBytes + page - 1) / page);
    auto* const data = const_cast<std::byte*>(file_->bytes().data());
    EXPECT_EQ(mincore(data, kBytes, in_core.data()), 0);
    size_t count = 0;
    for (const unsigned char c : in_core) count += c & 1u;
    return count == in_core.size() ? kBytes : count * page;
  }

  test::TempDir temp_;
  std::optional<MappedFile> file_;
};

TEST_F(PageReader, EveryPageIsThereAndEveryByteIsCounted) {
  const auto all = file_->bytes();
  // Out of order, unaligned, one empty.
  const std::vector<std::span<const std::byte>> ranges = {
      all.subspan(9'000'001), all.subspan(0, 17), {}, all.subspan(17, 9'000'001 - 17)};
  for (const int num_threads : {1, 3}) {
    WorkerPool pool({.num_threads = num_threads});
    std::vector<uint64_t> told;
    ASSERT_TRUE(ReadPages(ranges, pool, [&](uint64_t done) {
                  told.push_back(done);
                  return true;
                }).ok());
    EXPECT_EQ(Resident(), kBytes);
    EXPECT_EQ(told.front(), 0u);
    EXPECT_EQ(told.back(), kBytes);
    EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  }
}

TEST_F(PageReader, ReadsAheadOnceThePagesComeFromADisk) {
  ReadAhead cached;
  EXPECT_TRUE(cached.Populate(file_->bytes()));
  EXPECT_FALSE(cached.from_disk());
  EXPECT_TRUE(cached.Populate({}));

  file_.reset();  // mapped pages stay in the cache
  const int fd = ::open(temp_.File("file").c_str(), O_RDONLY);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::fdatasync(fd), 0);
  ASSERT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(fd);
  auto opened = MappedFile::Open(temp_.File("file"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  file_.emplace(*std::move(opened));
  const bool dropped = Resident() != kBytes;  // not where files live in memory
  ReadAhead cold;
  EXPECT_TRUE(cold.Populate(file_->bytes()));
  EXPECT_EQ(cold.from_disk(), dropped);
  EXPECT_EQ(Resident(), kBytes);
}

TEST_F(PageReader, StopsWhenItIsTold) {
  WorkerPool pool({.num_threads = 1});
  const std::vector<std::span<const std::byte>> ranges(40, file_->bytes());
  int calls = 0;
  const absl::Status status = ReadPages(ranges, pool, [&](uint64_t) { return ++calls < 3; });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 3);
}

TEST_F(PageReader, PopulateSaysThatPagesBeyondACutFileAreNotThere) {
  ASSERT_EQ(truncate(temp_.File("file").c_str(), 1 << 20), 0);
  EXPECT_TRUE(MappedFile::Populate(file_->bytes().subspan(0, 1 << 20)));
  EXPECT_FALSE(MappedFile::Populate(file_->bytes()));
}

}  // namespace
}  // namespace banyan
