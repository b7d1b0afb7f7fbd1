// A pool for which shared memory has no room, through the real binary. Runs with a /dev/shm of its
// own of a few MiB (CMakeLists.txt), so that filling it harms nobody.
#include <gtest/gtest.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "common/io/expert_pack.h"
#include "common/parallel/worker_pool.h"
#include "services/expert/runtime/pool_memory.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/source_dir.h"
#include "tests/integration/pack_fixture.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr uint64_t kLargestShm = uint64_t{16} << 20;
constexpr char kShm[] = "/dev/shm";

class ShmFullTest : public PackFixture {
 protected:
  void SetUp() override {
    struct statvfs space;
    ASSERT_EQ(statvfs(kShm, &space), 0);
    ASSERT_LE(space.f_blocks * space.f_frsize, kLargestShm) << "not a /dev/shm of the test's own";
    ASSERT_TRUE(std::filesystem::is_empty(kShm));
    Process pack({BinaryPath("banyan"), "pack", "--model=" + model_, "--pool_dir=" + packs_.path(),
                  "--pool_format=int8"});
    ASSERT_EQ(pack.WaitExit(kTimeout).value_or(-1), 0) << pack.Log();
    path_ = PackPath("int8-width-0of1.pack");
    pack_ = ReadFile(path_);
    ASSERT_LE(pack_.size(), Free());
  }
  void TearDown() override {
    for (const auto& file : std::filesystem::directory_iterator(kShm)) {
      std::filesystem::remove(file);
    }
  }

  static uint64_t Free() {
    struct statvfs space;
    EXPECT_EQ(statvfs(kShm, &space), 0);
    return space.f_bavail * space.f_frsize;
  }

  // Takes room until `left` bytes are free.
  static void TakeRoom(uint64_t left) {
    std::ofstream out(Ballast(), std::ios::binary | std::ios::app);
    const std::string page(4096, 'x');
    while (Free() > left && out.write(page.data(), 4096).flush()) {
    }
  }
  static std::string Ballast() { return std::string(kShm) + "/ballast"; }

  std::vector<std::string> Args() const {
    return {BinaryPath("banyan-expert"), "--model=" + model_, "--pool_dir=" + packs_.path(),
            "--pool_format=int8",        "--pool_memory=shm", "--listen=127.0.0.1:0",
            "--metrics_listen=",         "--threads=2"};
  }

  // Exit code 1, one line with all parts, nothing served, no segment and the pack as it was.
  void ExpectRefused(std::vector<std::string> args, const std::vector<std::string>& parts) {
    Process expert(args);
    EXPECT_EQ(expert.WaitExit(kTimeout).value_or(-1), 1);
    for (const std::string& part : parts) {
      EXPECT_NE(expert.Log().find(part), std::string::npos) << part << " in:\n" << expert.Log();
    }
    EXPECT_EQ(expert.Log().find(" ready "), std::string::npos) << expert.Log();
    ExpectNothingLeft();
  }

  void ExpectNothingLeft() const {
    for (const auto& file : std::filesystem::directory_iterator(kShm)) {
      EXPECT_EQ(file.path(), Ballast());
    }
    EXPECT_EQ(ReadFile(path_), pack_);
  }

  void ExpectServes() const {
    Process expert(Args());
    const auto line = expert.WaitForLine(" ready ", kTimeout);
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_NE(line->find("segment_reused=false"), std::string::npos) << *line;
    // A pool below a huge page has none; that is said, and it serves.
    EXPECT_TRUE(expert.WaitForLine("no_huge_pages", kTimeout).ok());
  }

  const std::string model_ = SourceDir() + "/tests/data/tiny";
};

TEST_F(ShmFullTest, TooLittleRoomIsSaidBeforeItIsFilled) {
  TakeRoom(1 << 20);
  ExpectRefused(Args(), {"--pool_memory shm: the pool needs 3.", "/dev/shm has 1.00 MiB free",
                         "shm_size of docker"});
  std::filesystem::remove(Ballast());
  ExpectServes();
}

TEST_F(ShmFullTest, AFileTooLargeIsSaid) {
  std::vector<std::string> args = ShellThat("ulimit -f 2000");
  for (const std::string& arg : Args()) args.push_back(arg);
  ExpectRefused(args, {"--pool_memory shm: the pool needs 3.",
                       "/dev/shm takes no file of that size (File too large)"});
}

// The room goes once the segment is made: the same code as in the host, stopped at its first page
// and at its last.
TEST_F(ShmFullTest, RoomThatGoesMeanwhileIsSaidAndNothingIsLeft) {
  for (const bool at_the_end : {false, true}) {
    SCOPED_TRACE(at_the_end);
    auto pack = ExpertPack::Open(path_);
    ASSERT_TRUE(pack.ok()) << pack.status();
    const int64_t payload = pack->layout().file_bytes - pack->layout().payload_offset;
    WorkerPool pool({.num_threads = 2});
    const auto memory = expert::PoolMemory::Load(
        *std::move(pack), {.mode = PoolMemoryMode::kShm}, pool, [&](uint64_t done) {
          if ((done == static_cast<uint64_t>(payload)) == at_the_end) TakeRoom(0);
          return true;
        });
    EXPECT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted) << memory.status();
    for (const char* part : {"--pool_memory shm: the pool needs 3.", "/dev/shm ran full before"}) {
      EXPECT_NE(memory.status().message().find(part), absl::string_view::npos) << memory.status();
    }
    ExpectNothingLeft();
    std::filesystem::remove(Ballast());
  }
  ExpectServes();
}

// The same of weights that are generated there, in parallel and without a read that could fail.
TEST_F(ShmFullTest, RoomThatGoesWhileWeightsAreGeneratedIsSaid) {
  const auto pack = ExpertPack::Open(path_);
  ASSERT_TRUE(pack.ok()) << pack.status();
  const auto generate = [&](int64_t full_at) {
    WorkerPool pool({.num_threads = 1});
    return expert::PoolMemory::Generate(
        pack->header(), {.mode = PoolMemoryMode::kShm}, pool,
        [&](int64_t idx, std::byte* out) {
          if (idx == full_at) TakeRoom(0);
          const std::span<const std::byte> bytes = pack->Expert(idx);
          std::copy(bytes.begin(), bytes.end(), out);
          return absl::OkStatus();
        },
        [](uint64_t) { return true; });
  };
  const auto full = generate(20);
  EXPECT_EQ(full.status().code(), absl::StatusCode::kResourceExhausted) << full.status();
  EXPECT_NE(full.status().message().find("/dev/shm ran full before"), absl::string_view::npos)
      << full.status();
  ExpectNothingLeft();
  std::filesystem::remove(Ballast());
  for (const bool reused : {false, true}) {
    const auto memory = generate(-1);
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ((*memory)->reused_segment(), reused);
    const std::span<const std::byte> last = pack->Expert(pack->header().num_packed_experts() - 1);
    EXPECT_TRUE(std::equal(last.begin(), last.end(),
                           (*memory)->Expert(pack->header().num_packed_experts() - 1)));
  }
}

// What Load has not mapped of a segment that it takes over is there nevertheless.
TEST_F(ShmFullTest, ASegmentTakenOverIsMappedInTheBackground) {
  const auto load = [&](absl::Duration map_time) {
    WorkerPool pool({.num_threads = 2});
    return expert::PoolMemory::Load(*ExpertPack::Open(path_),
                                    {.mode = PoolMemoryMode::kShm, .map_time = map_time}, pool,
                                    [](uint64_t) { return true; });
  };
  const auto filled = load(absl::InfiniteDuration());
  ASSERT_TRUE(filled.ok()) << filled.status();
  EXPECT_FALSE((*filled)->reused_segment());
  for (const absl::Duration map_time : {absl::ZeroDuration(), absl::InfiniteDuration()}) {
    const auto taken = load(map_time);
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_TRUE((*taken)->reused_segment());
    const expert::PoolMemory& memory = **taken;
    const auto bytes =
        static_cast<size_t>(memory.layout().file_bytes - memory.layout().payload_offset);
    const std::string_view payload(reinterpret_cast<const char*>(memory.Expert(0)), bytes);
    EXPECT_EQ(payload, std::string_view(pack_).substr(pack_.size() - bytes));
  }
}

}  // namespace
}  // namespace banyan::test
