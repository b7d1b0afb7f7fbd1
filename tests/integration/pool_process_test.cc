// Quantised pools through the real binaries: packed once, never served half, stale or damaged.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "common/io/checkpoint.h"
#include "common/io/expert_pack.h"
#include "common/io/mapped_file.h"
#include "common/quant/bf16.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/pack_fixture.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

using banyan::common::v1::LoadProgress;
using expert::v1::Experts;

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr int32_t kHiddenSize = 128;
constexpr int32_t kNumExperts = 16;
constexpr int32_t kNumLayers = 4;
constexpr uint32_t kSeed = 17;

std::string DataDir(const std::string& name) {
  return std::string(BANYAN_SOURCE_DIR) + "/tests/data/" + name;
}

// A host that is started through `wrapper` (such as a shell that sets a limit first).
class Host {
 public:
  explicit Host(std::vector<std::string> args, std::vector<std::string> wrapper = {})
      : process_(Args(std::move(args), std::move(wrapper))) {}

  Process& process() { return process_; }

  // The phases of the load until it is over.
  std::vector<LoadProgress::Phase> AwaitReady() {
    const absl::StatusOr<std::string> address = process_.ListeningAddress(kTimeout);
    if (!address.ok()) {
      ADD_FAILURE() << address.status();
      return {};
    }
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = Experts::NewStub(
        grpc::CreateCustomChannel(*address, grpc::InsecureChannelCredentials(), arguments));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
    const auto watch = stub_->WatchLoad(&context, {});
    LoadProgress progress;
    std::vector<LoadProgress::Phase> phases;
    while (watch->Read(&progress)) phases.push_back(progress.phase());
    if (phases.empty() || phases.back() != LoadProgress::READY) {
      ADD_FAILURE() << "not ready:\n" << process_.Log();
    }
    return phases;
  }

  expert::v1::DescribeResponse Describe() {
    grpc::ClientContext context;
    expert::v1::DescribeResponse response;
    const grpc::Status status = stub_->Describe(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // The replies to the same calls of every layer, one after the other.
  std::string Answers() {
    std::mt19937 random(kSeed);
    std::normal_distribution<float> normal;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kTimeout));
    const auto stream = stub_->Forward(&context);
    std::string out;
    uint64_t sequence = 0;
    for (int32_t layer = 0; layer < kNumLayers; ++layer) {
      // All experts, two a row.
      expert::v1::ForwardRequest request;
      request.set_sequence(++sequence);
      request.set_layer(static_cast<uint32_t>(layer));
      request.set_num_rows(kNumExperts / 2);
      request.set_top_k(2);
      request.set_flags(3);
      std::string ids, weights, x;
      for (uint16_t id = 0; id < kNumExperts; ++id) {
        ids.append(reinterpret_cast<const char*>(&id), 2);
        const float weight = normal(random);
        weights.append(reinterpret_cast<const char*>(&weight), 4);
      }
      for (int32_t i = 0; i < kNumExperts / 2 * kHiddenSize; ++i) {
        const float value = normal(random);
        x.append(reinterpret_cast<const char*>(&value), 4);
      }
      request.set_expert_ids(ids);
      request.set_weights(weights);
      request.set_activations(x);
      expert::v1::ForwardResponse response;
      if (!stream->Write(request) || !stream->Read(&response)) {
        ADD_FAILURE() << stream->Finish().error_message();
        return "";
      }
      out += response.partial_sums();
    }
    stream->WritesDone();
    stream->Finish();
    return out;
  }

  int Stop() {
    process_.Signal(SIGTERM);
    return process_.WaitExit(kTimeout).value_or(-1);
  }

 private:
  static std::vector<std::string> Args(std::vector<std::string> args,
                                       std::vector<std::string> wrapper) {
    for (const char* arg : {"--listen=127.0.0.1:0", "--metrics_listen=", "--threads=2"}) {
      args.push_back(arg);
    }
    args.insert(args.begin(), BinaryPath("banyan-expert"));
    args.insert(args.begin(), wrapper.begin(), wrapper.end());
    return args;
  }

  Process process_;
  std::unique_ptr<Experts::Stub> stub_;
};

int NumPhase(const std::vector<LoadProgress::Phase>& phases, LoadProgress::Phase phase) {
  return static_cast<int>(std::count(phases.begin(), phases.end(), phase));
}

class PoolProcessTest : public PackFixture {
 protected:
  std::vector<std::string> Args(std::vector<std::string> more = {}) const {
    std::vector<std::string> args;
    for (const std::string& standard :
         {"--model=" + model_, "--pool_dir=" + packs_.path(), std::string("--pool_format=int8")}) {
      const std::string flag = standard.substr(0, standard.find('=') + 1);
      const bool given = std::any_of(more.begin(), more.end(), [&](const std::string& arg) {
        return arg.rfind(flag, 0) == 0;
      });
      if (!given) args.push_back(standard);
    }
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  // Makes the sound pack and remembers its bytes and answers.
  void MakePack() {
    Host host(Args());
    const auto phases = host.AwaitReady();
    EXPECT_NE(host.process().Log().find(" packed "), std::string::npos);
    answers_ = host.Answers();
    ASSERT_EQ(host.Stop(), 0);
    path_ = PackPath("int8-width-0of1.pack");
    ASSERT_NE(path_, "");
    pack_ = ReadFile(path_);
  }

  std::string model_ = DataDir("tiny");
  std::string answers_;
};

TEST_F(PoolProcessTest, PackedOnceThenMapped) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto modified = std::filesystem::last_write_time(path_);
  Host host(Args());
  const auto phases = host.AwaitReady();
  EXPECT_EQ(NumPhase(phases, LoadProgress::CONVERT), 0);
  EXPECT_EQ(host.process().Log().find(" packed "), std::string::npos) << host.process().Log();
  EXPECT_EQ(host.Answers(), answers_);
  const auto description = host.Describe();
  EXPECT_EQ(description.pool_format(), "int8");
  EXPECT_FALSE(description.kernel_tier().empty());
  EXPECT_EQ(host.Stop(), 0);
  EXPECT_EQ(std::filesystem::last_write_time(path_), modified);
  EXPECT_EQ(Verify(packs_.path()).first, 0);
}

TEST_F(PoolProcessTest, ADamagedPackIsPackedAgainAndAForeignOneStays) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  // Packs of another shard and of another model, made by the tool.
  const auto make = [&](std::vector<std::string> args) {
    args.insert(args.begin(), {BinaryPath("banyan"), "pack", "--pool_dir=" + packs_.path()});
    Process pack(args);
    EXPECT_EQ(pack.WaitExit(kTimeout).value_or(-1), 0) << pack.Log();
  };
  make({"--model=" + model_, "--shard=1/2"});
  make({"--model=" + DataDir("tiny-fused")});
  const std::string other_shard = ReadFile(PackPath("int8-width-1of2.pack"));
  const std::string other_path = PackPath("int8-width-0of1.pack", path_);
  ASSERT_NE(other_path, "");
  const std::string other_model = ReadFile(other_path);
  ASSERT_NE(other_model, "");
  std::string newer = pack_;
  newer[8] = 2;
  const std::pair<std::string, std::string> foreign[] = {
      {other_shard, "of shard width-1of2, expected width-0of1"},
      {other_model, "of the model with fingerprint"},
      {newer, "pack version 2, this program reads version 1"},
  };
  for (const auto& [bytes, message] : foreign) {
    SCOPED_TRACE(message);
    WriteFile(path_, bytes);
    Host host(Args());
    EXPECT_EQ(host.process().WaitExit(kTimeout).value_or(-1), 1);
    for (const std::string& part : {message, path_, std::string("it is not replaced")}) {
      EXPECT_NE(host.process().Log().find(part), std::string::npos) << host.process().Log();
    }
    EXPECT_EQ(host.process().Log().find(" ready "), std::string::npos) << host.process().Log();
    EXPECT_EQ(ReadFile(path_), bytes);
  }
  for (const auto& [bytes, message] : Damages(/*cut=*/4096)) {
    SCOPED_TRACE(message);
    WriteFile(path_, bytes);
    Host host(Args());
    host.AwaitReady();
    const absl::StatusOr<std::string> line =
        host.process().WaitForLine("pack_rejected", absl::Seconds(5));
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_NE(line->find(message), std::string::npos) << *line;
    EXPECT_EQ(host.Answers(), answers_);
    EXPECT_EQ(host.Stop(), 0);
    EXPECT_EQ(ReadFile(path_), pack_);
  }
}

// Random header bytes (tests/unit tries all of them) and payload bytes.
TEST_F(PoolProcessTest, VerifyFindsEveryFlippedByte) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto sound = ExpertPack::Open(path_);
  ASSERT_TRUE(sound.ok()) << sound.status();
  const ExpertPackLayout layout = sound->layout();
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 24; ++i) {
    const bool header = i < 12;
    const auto at = static_cast<int64_t>(
        header ? random() % static_cast<uint64_t>(layout.header_bytes)
               : static_cast<uint64_t>(layout.payload_offset) +
                     random() % static_cast<uint64_t>(layout.file_bytes - layout.payload_offset));
    std::string bytes = pack_;
    bytes[static_cast<size_t>(at)] ^= static_cast<char>(1u << random() % 8);
    const std::string path = packs_.File("flipped.pack");
    WriteFile(path, bytes);
    const auto [code, log] = Verify(path);
    EXPECT_EQ(code, 1) << at;
    const std::string expected =
        header
            ? "flipped.pack"
            : sound->ExpertName((at - layout.payload_offset) / layout.expert_bytes) + " is damaged";
    EXPECT_NE(log.find(expected), std::string::npos) << log;
  }
}

TEST_F(PoolProcessTest, ADamagedPayloadIsPackedAgainWhenAsked) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  std::string bytes = pack_;
  bytes[bytes.size() - 12345] ^= 8;
  WriteFile(path_, bytes);
  Host host(Args({"--verify_pool"}));
  const auto phases = host.AwaitReady();
  const absl::StatusOr<std::string> line =
      host.process().WaitForLine("pack_rejected", absl::Seconds(5));
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_NE(line->find("expert 15 is damaged"), std::string::npos) << *line;
  EXPECT_EQ(host.Answers(), answers_);
  EXPECT_EQ(host.Stop(), 0);
  EXPECT_EQ(ReadFile(path_), pack_);
}

TEST_F(PoolProcessTest, AFullDiskEndsTheStartAndKeepsTheOldPack) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const std::string stale = WithDamagedHeader();
  WriteFile(path_, stale);
  Host host(Args(), ShellThat("ulimit -f 100"));
  EXPECT_EQ(host.process().WaitExit(kTimeout).value_or(-1), 1);
  EXPECT_NE(host.process().Log().find("the pack needs"), std::string::npos) << host.process().Log();
  EXPECT_EQ(ReadFile(path_), stale);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));
}

// A disk that fails under the pack, or under the checkpoint while it is packed.
TEST_F(PoolProcessTest, AReadErrorEndsTheStartAndKeepsTheOldPack) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto sound = ExpertPack::Open(path_);
  ASSERT_TRUE(sound.ok()) << sound.status();
  const auto model = Checkpoint::Open(model_);
  ASSERT_TRUE(model.ok()) << model.status();
  const Checkpoint::Entry* const weight =
      (*model)->Find("model.layers.1.mlp.experts.3.up_proj.weight");
  ASSERT_NE(weight, nullptr);
  const std::string shard = model_ + "/" + (*model)->FileOf(*weight);
  const auto file = MappedFile::Open(shard);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string bytes(reinterpret_cast<const char*>(weight->view.data), 256);
  const size_t weight_at =
      std::string_view(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size())
          .find(bytes);
  ASSERT_NE(weight_at, std::string_view::npos);

  const auto expect = [&](const std::string& pack, size_t offset, std::vector<std::string> more,
                          const std::string& failing) {
    WriteFile(path_, pack);
    Host host(Args(std::move(more)), {BinaryPath("failing_reads"), std::to_string(offset)});
    EXPECT_EQ(host.process().WaitExit(kTimeout).value_or(-1), 1);
    const std::string log = host.process().Log();
    for (const std::string& part : {failing, std::string("Input/output error")}) {
      EXPECT_NE(log.find(part), std::string::npos) << part << " in:\n" << log;
    }
    EXPECT_EQ(log.find(" ready "), std::string::npos) << log;
    EXPECT_EQ(ReadFile(path_), pack);
    EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));
  };
  const auto payload = static_cast<size_t>(sound->layout().payload_offset);
  expect(pack_, payload, {"--pool_memory=anonymous"}, path_);
  expect(pack_, payload, {"--pool_memory=shm"}, path_);
  expect(pack_, payload, {"--verify_pool"}, path_);
  expect(WithDamagedHeader(), weight_at, {}, shard);
  // Shared memory holds nothing of the pack that could not be read.
  for (const auto& segment : std::filesystem::directory_iterator("/dev/shm")) {
    EXPECT_EQ(segment.path().string().find(sound->header().fingerprint.substr(0, 16)),
              std::string::npos)
        << segment.path();
  }
}

// 50 runs are killed while they pack: what is there under the name afterwards is a whole pack or
// nothing, and the next start serves the right weights.
TEST_F(PoolProcessTest, KilledWhilePacking) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  std::mt19937 random(kSeed);
  const std::string temporary = path_ + ".tmp";
  int left_behind = 0;
  for (int i = 0; i < 50; ++i) {
    // Every other time a stale pack lies there.
    std::filesystem::remove(path_);
    std::string stale;
    if (i % 2 == 0) {
      stale = pack_;
      stale[120 - 8] ^= 1;  // the stamp of the source
      WriteFile(path_, stale);
    }
    Host host(Args());
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!std::filesystem::exists(temporary) && absl::Now() < deadline &&
           host.process().Log().find(" ready ") == std::string::npos) {
      absl::SleepFor(absl::Microseconds(200));
    }
    absl::SleepFor(absl::Microseconds(random() % 15000));
    host.process().Signal(SIGKILL);
    EXPECT_EQ(host.process().WaitExit(kTimeout).value_or(-1), 128 + SIGKILL);
    left_behind += std::filesystem::exists(temporary) ? 1 : 0;
    if (!std::filesystem::exists(path_)) continue;
    const std::string found = ReadFile(path_);
    EXPECT_TRUE(found == pack_ || found == stale) << "run " << i << " left half a pack";
  }
  std::printf("%d of 50 runs were killed with a pack half written\n", left_behind);
  EXPECT_GT(left_behind, 0);
  Host host(Args());
  host.AwaitReady();
  EXPECT_EQ(host.Answers(), answers_);
  EXPECT_EQ(host.Stop(), 0);
  EXPECT_EQ(ReadFile(path_), pack_);
  EXPECT_FALSE(std::filesystem::exists(temporary));
}

TEST_F(PoolProcessTest, EveryMemoryGivesTheSameAnswers) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  Host host(Args({"--pool_memory=anonymous"}));
  host.AwaitReady();
  EXPECT_EQ(host.Answers(), answers_);
  EXPECT_TRUE(host.process().WaitForLine("memory=anonymous", absl::Seconds(5)).ok());
  EXPECT_EQ(host.Stop(), 0);
}

// Dummy weights are made in memory, with no pack; a pack that somebody made of them is used and
// gives the same answers.
TEST_F(PoolProcessTest, DummyPoolsNeedNoPack) {
  const std::vector<std::string> dummy = {"--load_format=dummy", "--pool_format=nf4"};
  Host generated(Args(dummy));
  EXPECT_EQ(NumPhase(generated.AwaitReady(), LoadProgress::CONVERT), 0);
  const std::string answers = generated.Answers();
  EXPECT_TRUE(generated.process().WaitForLine("memory=anonymous", absl::Seconds(5)).ok());
  EXPECT_EQ(generated.Stop(), 0);
  EXPECT_EQ(PackPath("nf4-width-0of1.pack"), "");

  Process pack({BinaryPath("banyan"), "pack", "--model=" + model_, "--pool_dir=" + packs_.path(),
                dummy[0], dummy[1]});
  EXPECT_EQ(pack.WaitExit(kTimeout).value_or(-1), 0) << pack.Log();
  Host packed(Args(dummy));
  packed.AwaitReady();
  EXPECT_TRUE(packed.process().WaitForLine("memory=map", absl::Seconds(5)).ok());
  EXPECT_EQ(packed.Answers(), answers);
  EXPECT_EQ(packed.Stop(), 0);
}

// What banyan-expert serves by default: a pack of it is made ahead, or none is needed.
TEST_F(PoolProcessTest, PacksTheOwnFormat) {
  const auto pack = [&](const std::string& model) {
    Process process({BinaryPath("banyan"), "pack", "--model=" + DataDir(model),
                     "--pool_dir=" + packs_.path(), "--pool_format=auto", "--split=experts"});
    EXPECT_EQ(process.WaitExit(kTimeout).value_or(-1), 0) << process.Log();
    return process.Log();
  };
  EXPECT_NE(pack("tiny").find("served where the checkpoint is mapped"), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_empty(packs_.path()));
  EXPECT_NE(pack("tiny-nf4").find("nf4-experts-0of1.pack"), std::string::npos);
  EXPECT_NE(pack("tiny-fp8").find("bf16-experts-0of1.pack"), std::string::npos);
  Host host({"--model=" + DataDir("tiny-fp8"), "--pool_dir=" + packs_.path(), "--split=experts"});
  EXPECT_EQ(NumPhase(host.AwaitReady(), LoadProgress::CONVERT), 0);
  // FP8 values are bf16: nothing is rounded.
  EXPECT_EQ(host.process().Log().find("experts_rounded"), std::string::npos);
}

// Experts of f16 lose mantissa bits in a bf16 pool; the log names them and the bound.
TEST_F(PoolProcessTest, RoundedExpertsAreNamed) {
  TempDir source;
  TestCheckpoint model = TestCheckpoint::Read(model_);
  for (TestShard& shard : model.shards) {
    for (TestTensor& tensor : shard.tensors) {
      if (tensor.name.find(".mlp.experts.") == std::string::npos) continue;
      tensor.dtype = "F16";
      // Small numbers of either sign, whatever the bits were.
      for (size_t i = 1; i < tensor.bytes.size(); i += 2) tensor.bytes[i] &= '\xaf';
    }
  }
  model.Write(source.path());
  Host host(Args({"--model=" + source.path(), "--pool_format=auto"}));
  host.AwaitReady();
  const auto line = host.process().WaitForLine("experts_rounded", absl::Seconds(5));
  ASSERT_TRUE(line.ok()) << line.status();
  for (const char* part : {"tensor=model.layers.0.mlp.experts.0.gate_proj.weight", "values=F16",
                           "pool_format=bf16", "largest_relative_error=0.002"}) {
    EXPECT_NE(line->find(part), std::string::npos) << *line;
  }
}

// A model of its own, so that no other test has its segment.
class SharedMemoryTest : public PoolProcessTest {
 protected:
  void SetUp() override {
    TestCheckpoint model = TestCheckpoint::Read(model_);
    model.texts.at("config.json") += fmt::format("{:{}}", "", 1 + getpid() % 5000);
    model.Write(source_.path());
    model_ = source_.path();
    ASSERT_NO_FATAL_FAILURE(MakePack());
    const auto pack = ExpertPack::Open(path_);
    ASSERT_TRUE(pack.ok()) << pack.status();
    segment_ =
        fmt::format("/dev/shm/banyan-{}-int8-width-0of1", pack->header().fingerprint.substr(0, 16));
    std::filesystem::remove(segment_);
  }
  void TearDown() override {
    std::filesystem::remove(segment_);
    std::filesystem::remove(segment_ + ".tmp");
  }
  void ExpectServes(const std::string& reused) {
    Host host(Args({"--pool_memory=shm"}));
    host.AwaitReady();
    const auto line = host.process().WaitForLine(" ready ", absl::Seconds(5));
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_NE(line->find("segment_reused=" + reused), std::string::npos) << *line;
    EXPECT_EQ(host.Answers(), answers_);
    host.process().Signal(SIGKILL);
    EXPECT_EQ(host.process().WaitExit(kTimeout).value_or(-1), 128 + SIGKILL);
  }

  TempDir source_;
  std::string segment_;
};

TEST_F(SharedMemoryTest, SurvivesARestartAndIsCheckedBeforeUse) {
  ExpectServes("false");
  ExpectServes("true");
  const std::string sound = ReadFile(segment_);
  // Half filled: the last page is not written, whatever lies before it.
  std::string half = sound;
  std::fill(half.end() - 4096, half.end(), '\0');
  std::fill(half.begin() + static_cast<std::ptrdiff_t>(half.size()) * 3 / 4, half.end(), '\0');
  std::string other = sound;
  other[100] ^= 1;  // of another model
  for (const std::string& bytes : {half, other, sound.substr(0, sound.size() - 4096)}) {
    WriteFile(segment_, bytes);
    std::filesystem::permissions(
        segment_, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    ExpectServes("false");
    EXPECT_EQ(ReadFile(segment_), sound);
  }
  // A run that was killed while it filled the segment.
  std::filesystem::rename(segment_, segment_ + ".tmp");
  ExpectServes("false");
  EXPECT_FALSE(std::filesystem::exists(segment_ + ".tmp"));
  // Others may write it: not trusted.
  std::filesystem::permissions(segment_, std::filesystem::perms::others_write,
                               std::filesystem::perm_options::add);
  ExpectServes("false");
}

TEST_F(SharedMemoryTest, HoldsDummyWeightsToo) {
  const std::vector<std::string> dummy = {"--load_format=dummy", "--pool_format=nf4"};
  std::string answers;
  {
    Host host(Args(dummy));
    host.AwaitReady();
    answers = host.Answers();
    segment_ = fmt::format("/dev/shm/banyan-{}-nf4-width-0of1",
                           host.Describe().model_fingerprint().substr(0, 16));
    EXPECT_EQ(host.Stop(), 0);
  }
  for (const std::string reused : {"false", "true"}) {
    Host host(Args({dummy[0], dummy[1], "--pool_memory=shm"}));
    host.AwaitReady();
    EXPECT_TRUE(host.process().WaitForLine("segment_reused=" + reused, absl::Seconds(5)).ok());
    EXPECT_EQ(host.Answers(), answers);
    EXPECT_EQ(host.Stop(), 0);
    EXPECT_TRUE(std::filesystem::exists(segment_));
  }
}

struct Refusal {
  std::string name;
  std::vector<std::string> args;
  std::string setup;  // of a shell
  std::vector<std::string> parts;
};

TEST_F(PoolProcessTest, RefusesBeforeItLoads) {
  const bool root = geteuid() == 0;
  const Refusal refusals[] = {
      {"memory", {"--host_budget=1MiB"}, "", {"MiB needed, 1.00 MiB granted", "expert pool"}},
      {"mlock",
       {"--mlock"},
       root ? "ulimit -l 64; set -- setpriv --bounding-set=-ipc_lock -- \"$@\"" : "ulimit -l 64",
       {"--mlock: ", "cannot be locked", "the limit of locked memory is 64.0 KiB"}},
      {"memory of a checkpoint",
       {"--pool_format=auto", "--host_budget=1MiB"},
       "",
       {"granted (--host_budget)", "bf16, map"}},
      {"no pack", {"--pool_format=auto", "--pool_memory=shm"}, "", {"--pool_memory shm: is for"}},
      {"slices", {"--shard=0/3"}, "", {"2 groups of 32", "--split experts"}},
      {"place", {"--pool_dir=/proc/no/such"}, "", {"--pool_dir: /proc/no/such"}},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.name);
    Host host(Args(refusal.args),
              refusal.setup.empty() ? std::vector<std::string>{} : ShellThat(refusal.setup));
    EXPECT_EQ(host.process().WaitExit(kTimeout).value_or(-1), 1);
    for (const std::string& part : refusal.parts) {
      EXPECT_NE(host.process().Log().find(part), std::string::npos) << host.process().Log();
    }
  }
}

}  // namespace
}  // namespace banyan::test
