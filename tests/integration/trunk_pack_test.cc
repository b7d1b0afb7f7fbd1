// The trunk's pack through the real binaries: made once, never served half, stale or damaged.
#include "common/io/trunk_pack.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/cluster.h"
#include "tests/integration/pack_fixture.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

using common::v1::LoadProgress;

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr uint32_t kSeed = 23;
constexpr float kSplitTolerance = 1e-3f;  // golden/README: an f32 engine

std::string DataDir(const std::string& name) {
  return std::string(BANYAN_SOURCE_DIR) + "/tests/data/" + name;
}

class TrunkPackTest : public PackFixture {
 protected:
  // A trunk whose experts are nowhere: it loads and then waits for them.
  std::unique_ptr<Process> Trunk(std::vector<std::string> more = {},
                                 std::vector<std::string> wrapper = {}) const {
    std::vector<std::string> args = std::move(wrapper);
    args.insert(args.end(), {BinaryPath("banyan-trunk"), "--model=" + model_, "--backend=cpu",
                             "--experts=unix:" + packs_.File("nobody"), "--listen=127.0.0.1:0",
                             "--metrics_listen=", "--threads=2", "--max_sequences=1"});
    const bool given = std::any_of(more.begin(), more.end(), [](const std::string& arg) {
      return arg.rfind("--pool_dir", 0) == 0;
    });
    if (!given) args.push_back("--pool_dir=" + packs_.path());
    args.insert(args.end(), more.begin(), more.end());
    return std::make_unique<Process>(args);
  }

  // The log of a trunk that has loaded its weights.
  static std::string Loaded(Process& trunk) {
    const auto line = trunk.WaitForLine("waiting_for_experts", kTimeout);
    EXPECT_TRUE(line.ok()) << line.status();
    return trunk.Log();
  }

  static int Stop(Process& trunk) {
    trunk.Signal(SIGTERM);
    return trunk.WaitExit(kTimeout).value_or(-1);
  }

  void MakePack() {
    const auto trunk = Trunk();
    const std::string log = Loaded(*trunk);
    EXPECT_NE(log.find(" packed "), std::string::npos) << log;
    Stop(*trunk);
    path_ = PackPath("trunk-bf16.pack");
    ASSERT_NE(path_, "");
    pack_ = ReadFile(path_);
  }

  std::string model_ = DataDir("tiny-nf4");
};

// What a served trunk answers, and the phases of its load.
struct Served {
  std::vector<LoadProgress::Phase> phases;
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::string log;
};

class ServedTrunkPackTest : public TrunkPackTest {
 protected:
  Served Serve(std::vector<std::string> trunk_args) {
    ClusterOptions options;
    options.model_dir = model_;
    options.unix_sockets = true;
    options.trunk_args = std::move(trunk_args);
    options.trunk_args.push_back("--max_sequences=4");
    options.expert_args = {"--pool_dir=" + experts_.path()};
    Cluster cluster(options);
    Served out;
    const absl::Status started = cluster.Start();
    EXPECT_TRUE(started.ok()) << started;
    if (!started.ok()) return out;
    const auto stub = cluster.NewStub();
    grpc::ClientContext watch_context;
    watch_context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
    const auto watch = stub->WatchLoad(&watch_context, {});
    LoadProgress progress;
    while (watch->Read(&progress)) out.phases.push_back(progress.phase());
    const absl::Status serving = cluster.AwaitServing(kTimeout);
    EXPECT_TRUE(serving.ok()) << serving;
    inference::v1::GenerateRequest request;
    for (int32_t id = 1; id <= 20; ++id) request.mutable_token_ids()->add_ids(id * 7 % 64);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_new_tokens(12);
    request.set_ignore_eos(true);
    request.set_prompt_logprobs(true);
    const absl::StatusOr<Answer> answer = Generate(*stub, request);
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer.ok()) {
      out.ids = answer->ids;
      for (const auto& record : answer->started.prompt_logprobs()) {
        out.logprobs.push_back(record.logprob());
      }
    }
    out.log = cluster.trunk()->Log();
    return out;
  }

  static bool Had(const Served& served, LoadProgress::Phase phase) {
    return std::count(served.phases.begin(), served.phases.end(), phase) > 0;
  }

  TempDir experts_;
};

// Packed, mapped and converted in memory: the same bits. The second start converts nothing, and
// says so in the log and over WatchLoad.
TEST_F(ServedTrunkPackTest, TheSecondStartConvertsNothing) {
  for (const std::string format : {"bf16", "int8"}) {
    SCOPED_TRACE(format);
    const std::string flag = "--trunk_format=" + format;
    const std::string packs = "--pool_dir=" + packs_.path();
    const Served first = Serve({flag, packs});
    EXPECT_NE(first.log.find(" packed "), std::string::npos) << first.log;
    const std::string path = PackPath("trunk-" + format + ".pack");
    ASSERT_NE(path, "");
    const auto modified = std::filesystem::last_write_time(path);

    const Served second = Serve({flag, packs});
    EXPECT_FALSE(Had(second, LoadProgress::CONVERT));
    EXPECT_EQ(second.log.find(" packed "), std::string::npos) << second.log;
    EXPECT_NE(second.log.find("pack_used pack=" + path), std::string::npos) << second.log;
    EXPECT_EQ(std::filesystem::last_write_time(path), modified);

    const Served unpacked = Serve({flag, "--pool_dir="});
    EXPECT_NE(unpacked.log.find("trunk_not_packed"), std::string::npos) << unpacked.log;
    for (const Served* served : {&second, &unpacked}) {
      EXPECT_EQ(served->ids, first.ids);
      EXPECT_EQ(served->logprobs, first.logprobs);
    }
    const auto [code, log] = Verify(packs_.path());
    EXPECT_EQ(code, 0) << log;
    EXPECT_NE(log.find("sound: trunk, " + format), std::string::npos) << log;
  }
}

// Parts of a trunk use the pack that a trunk alone has made, or make it: nothing is converted
// again, the answers are the same.
TEST_F(ServedTrunkPackTest, PartsOfATrunkUseTheWholeTrunksPack) {
  for (const std::string format : {"bf16", "int8"}) {
    SCOPED_TRACE(format);
    const std::string flag = "--trunk_format=" + format;
    const auto serve = [&](const std::string& packs, const std::string& parts) {
      return Serve({flag, "--pool_dir=" + packs, "--tensor_parallel=" + parts});
    };
    const Served alone = serve(packs_.path(), "1");
    const std::string path = PackPath("trunk-" + format + ".pack");
    ASSERT_NE(path, "");
    const std::string bytes = ReadFile(path);
    for (const std::string parts : {"2", "4"}) {
      SCOPED_TRACE(parts);
      const Served served = serve(packs_.path(), parts);
      EXPECT_FALSE(Had(served, LoadProgress::CONVERT));
      EXPECT_EQ(served.log.find(" packed "), std::string::npos) << served.log;
      EXPECT_NE(served.log.find("pack_used pack=" + path), std::string::npos) << served.log;
      EXPECT_EQ(served.ids, alone.ids);
      ASSERT_EQ(served.logprobs.size(), alone.logprobs.size());
      for (size_t i = 0; i < alone.logprobs.size(); ++i) {
        EXPECT_NEAR(served.logprobs[i], alone.logprobs[i], kSplitTolerance) << i;
      }
    }
    // The first start in parts makes the same file.
    TempDir others;
    const Served made = serve(others.path(), "2");
    EXPECT_NE(made.log.find(" packed "), std::string::npos) << made.log;
    EXPECT_EQ(made.ids, alone.ids);
    EXPECT_EQ(ReadFile(others.path() + path.substr(packs_.path().size())), bytes);
  }
}

// Another process's readers see the phases of the first start.
TEST_F(TrunkPackTest, WatchersSeeTheConversion) {
  const auto trunk = Trunk();
  const std::string log = Loaded(*trunk);
  for (const char* phase : {"phase=convert", "phase=verify", "phase=read"}) {
    EXPECT_NE(log.find(phase), std::string::npos) << log;
  }
  EXPECT_LT(log.find("phase=convert"), log.find("phase=verify"));
  EXPECT_LT(log.find("phase=verify"), log.find("phase=read"));
}

TEST_F(TrunkPackTest, APlainTrunkIsMappedWithoutAPack) {
  model_ = DataDir("tiny");
  const auto trunk = Trunk();
  const std::string log = Loaded(*trunk);
  EXPECT_EQ(log.find("packed"), std::string::npos) << log;
  EXPECT_TRUE(std::filesystem::is_empty(packs_.path()));
}

// The headers are the same: sizes and times tell.
TEST_F(TrunkPackTest, ARewrittenSourceIsPackedAgain) {
  TempDir source;
  TestCheckpoint model = TestCheckpoint::Read(model_);
  model.Write(source.path());
  model_ = source.path();
  ASSERT_NO_FATAL_FAILURE(MakePack());
  TestTensor* const weight = model.Find("model.layers.0.linear_attn.in_proj_qkvz.weight");
  weight->bytes[17] = static_cast<char>(weight->bytes[17] ^ 0x55);
  model.Write(source.path());
  const auto trunk = Trunk();
  const std::string log = Loaded(*trunk);
  EXPECT_NE(log.find("pack_rejected"), std::string::npos) << log;
  EXPECT_NE(log.find("were rewritten"), std::string::npos) << log;
  EXPECT_NE(log.find(" packed "), std::string::npos) << log;
  EXPECT_NE(ReadFile(path_), pack_);
  Stop(*trunk);
  const auto again = Trunk();
  EXPECT_NE(Loaded(*again).find("pack_used"), std::string::npos) << again->Log();
}

TEST_F(TrunkPackTest, ADamagedPackIsPackedAgainAndAForeignOneStays) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto make = [&](const std::string& model, const std::string& format) {
    const std::string mine = std::exchange(model_, DataDir(model));
    const auto trunk = Trunk({"--trunk_format=" + format});
    Loaded(*trunk);
    Stop(*trunk);
    model_ = mine;
  };
  make("tiny-nf4", "int8");
  const std::string other_format = ReadFile(PackPath("trunk-int8.pack"));
  make("tiny-fp8", "bf16");
  const std::string other_path = PackPath("trunk-bf16.pack", path_);
  ASSERT_NE(other_path, "");
  const std::string other_model = ReadFile(other_path);
  ASSERT_NE(other_model, "");
  std::string newer = pack_;
  newer[8] = 2;
  const std::pair<std::string, std::string> foreign[] = {
      {other_format, "trunk format int8, expected bf16"},
      {other_model, "of the model with fingerprint"},
      {newer, "pack version 2, this program reads version 1"},
  };
  for (const auto& [bytes, message] : foreign) {
    SCOPED_TRACE(message);
    WriteFile(path_, bytes);
    const auto trunk = Trunk();
    EXPECT_EQ(trunk->WaitExit(kTimeout).value_or(-1), 1);
    for (const std::string& part : {message, path_, std::string("it is not replaced")}) {
      EXPECT_NE(trunk->Log().find(part), std::string::npos) << trunk->Log();
    }
    EXPECT_EQ(ReadFile(path_), bytes);
  }
  for (const auto& [bytes, message] : Damages(/*cut=*/64)) {
    SCOPED_TRACE(message);
    WriteFile(path_, bytes);
    const auto [code, verified] = Verify(path_);
    EXPECT_EQ(code, 1) << verified;
    const auto trunk = Trunk();
    const auto line = trunk->WaitForLine("pack_rejected", kTimeout);
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_NE(line->find(message), std::string::npos) << *line;
    EXPECT_NE(line->find(path_), std::string::npos) << *line;
    Loaded(*trunk);
    EXPECT_EQ(ReadFile(path_), pack_);
  }
}

// A flipped bit of a matrix is named by `banyan verify`, and by a start that is asked to look.
TEST_F(TrunkPackTest, ADamagedPayloadIsNamed) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto sound = TrunkPack::Open(path_);
  ASSERT_TRUE(sound.ok()) << sound.status();
  const std::vector<PackPiece> pieces = sound->Pieces();
  std::mt19937 random(kSeed);
  for (int i = 0; i < 8; ++i) {
    const auto idx = static_cast<int64_t>(random() % pieces.size());
    const PackPiece& piece = pieces[static_cast<size_t>(idx)];
    std::string bytes = pack_;
    char& at = bytes[static_cast<size_t>(piece.offset + random() % piece.bytes)];
    at = static_cast<char>(at ^ (1 << random() % 8));
    WriteFile(path_, bytes);
    const auto [code, log] = Verify(path_);
    EXPECT_EQ(code, 1);
    const std::string expected = sound->PieceName(idx) + " is damaged";
    EXPECT_NE(log.find(expected), std::string::npos) << log;
    if (i > 0) continue;
    const auto trunk = Trunk({"--verify_pool"});
    const auto line = trunk->WaitForLine("pack_rejected", kTimeout);
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_NE(line->find(expected), std::string::npos) << *line;
    Loaded(*trunk);
    EXPECT_EQ(ReadFile(path_), pack_);
  }
}

// As an expert: the start ends, the old pack stays, nothing half is left.
TEST_F(TrunkPackTest, AFullDiskEndsTheStartAndKeepsTheOldPack) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const std::string stale = WithDamagedHeader();
  WriteFile(path_, stale);
  const auto trunk = Trunk({}, ShellThat("ulimit -f 100"));
  EXPECT_EQ(trunk->WaitExit(kTimeout).value_or(-1), 1);
  EXPECT_NE(trunk->Log().find("the pack needs"), std::string::npos) << trunk->Log();
  EXPECT_EQ(ReadFile(path_), stale);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));

  const auto nowhere = Trunk({"--pool_dir=/proc/no/such"});
  EXPECT_EQ(nowhere->WaitExit(kTimeout).value_or(-1), 1);
  EXPECT_NE(nowhere->Log().find("--pool_dir: /proc/no/such"), std::string::npos) << nowhere->Log();
}

// What is there under the name after a kill is a whole pack or nothing.
TEST_F(TrunkPackTest, KilledWhilePacking) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  std::mt19937 random(kSeed);
  const std::string temporary = path_ + ".tmp";
  int left_behind = 0;
  for (int i = 0; i < 30; ++i) {
    std::filesystem::remove(path_);
    std::string stale;
    if (i % 2 == 0) {
      stale = pack_;
      stale[72] = static_cast<char>(stale[72] ^ 1);  // the stamp of the source
      WriteFile(path_, stale);
    }
    const auto trunk = Trunk();
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!std::filesystem::exists(temporary) && absl::Now() < deadline &&
           trunk->Log().find("waiting_for_experts") == std::string::npos) {
      absl::SleepFor(absl::Microseconds(200));
    }
    absl::SleepFor(absl::Microseconds(random() % 15000));
    trunk->Signal(SIGKILL);
    EXPECT_EQ(trunk->WaitExit(kTimeout).value_or(-1), 128 + SIGKILL);
    left_behind += std::filesystem::exists(temporary) ? 1 : 0;
    if (!std::filesystem::exists(path_)) continue;
    const std::string found = ReadFile(path_);
    EXPECT_TRUE(found == pack_ || found == stale) << "run " << i << " left half a pack";
  }
  std::printf("%d of 30 runs were killed with a pack half written\n", left_behind);
  EXPECT_GT(left_behind, 0);
  const auto trunk = Trunk();
  Loaded(*trunk);
  EXPECT_EQ(ReadFile(path_), pack_);
  EXPECT_FALSE(std::filesystem::exists(temporary));
}

}  // namespace
}  // namespace banyan::test
