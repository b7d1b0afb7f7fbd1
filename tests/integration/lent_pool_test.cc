// The pool of a real host, borrowed and mapped as a trunk does it.
#include "services/trunk/experts/lent_pool.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "common/io/expert_pack.h"
#include "proto/expert/v1/expert.grpc.pb.h"
#include "services/trunk/experts/expert_directory.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/source_dir.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/pack_fixture.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);

class LentPoolProcessTest : public PackFixture {
 protected:
  // A model of its own, so that no other test has its segment.
  void SetUp() override {
    TestCheckpoint model = TestCheckpoint::Read(SourceDir() + "/tests/data/tiny");
    model.texts.at("config.json") += fmt::format("{:{}}", "", 5001 + getpid() % 5000);
    model.Write(source_.path());
  }
  void TearDown() override {
    if (segment_.empty()) return;
    std::filesystem::remove(segment_);
    std::filesystem::remove(segment_ + ".tmp");
  }

  std::string address() const { return "unix:" + sockets_.File("e"); }

  // Starts a host of the whole pool and waits until it serves.
  std::unique_ptr<Process> Host(const std::vector<std::string>& more) {
    std::vector<std::string> args = {BinaryPath("banyan-expert"),   "--model=" + source_.path(),
                                     "--pool_dir=" + packs_.path(), "--listen=" + address(),
                                     "--metrics_listen=",           "--threads=2"};
    args.insert(args.end(), more.begin(), more.end());
    auto host = std::make_unique<Process>(args);
    const auto ready = host->WaitForLine(" ready ", kTimeout);
    EXPECT_TRUE(ready.ok()) << ready.status();
    return host;
  }

  // Makes the pack and remembers its bytes.
  void MakePack(const std::string& format = "int8", const std::vector<std::string>& more = {}) {
    std::vector<std::string> args = {BinaryPath("banyan"), "pack", "--model=" + source_.path(),
                                     "--pool_dir=" + packs_.path(), "--pool_format=" + format};
    args.insert(args.end(), more.begin(), more.end());
    Process pack(args);
    ASSERT_EQ(pack.WaitExit(kTimeout).value_or(-1), 0) << pack.Log();
    path_ = PackPath(format + "-width-0of1.pack");
    ASSERT_NE(path_, "");
    pack_ = ReadFile(path_);
    const auto opened = ExpertPack::Open(path_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    segment_ = fmt::format("/dev/shm/banyan-{}-{}-width-0of1",
                           opened->header().fingerprint.substr(0, 16), format);
    std::filesystem::remove(segment_);
  }

  // The model as the trunk would know it; what the host says of itself.
  trunk::ExpectedModel Model() {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
    expert::v1::DescribeResponse host;
    const grpc::Status status =
        expert::v1::Experts::NewStub(
            grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()))
            ->Describe(&context, {}, &host);
    EXPECT_TRUE(status.ok()) << status.error_message();
    trunk::ExpectedModel model;
    model.fingerprint = host.model_fingerprint();
    model.num_layers = static_cast<int32_t>(host.num_layers());
    model.moe_layers.assign(host.moe_layers().begin(), host.moe_layers().end());
    model.num_experts = static_cast<int32_t>(host.num_experts());
    model.hidden_size = static_cast<int32_t>(host.hidden_size());
    model.moe_intermediate_size = static_cast<int32_t>(host.moe_intermediate_size());
    model.num_experts_per_tok = 4;
    model.max_rows = 16;
    return model;
  }

  absl::StatusOr<FileDescriptor> Borrow() {
    trunk::ExpertDirectory::Options options;
    options.cluster.shards = {{{address()}}};
    options.model = Model();
    options.connect_timeout = kTimeout;
    auto directory = trunk::ExpertDirectory::Create(options, &metrics_);
    EXPECT_TRUE(directory.ok()) << directory.status();
    EXPECT_EQ((*directory)->WaitReady(absl::Now() + kTimeout), absl::OkStatus());
    return (*directory)->BorrowPool(0);
  }

  // What is lent is for reading, and holds every byte of the pack's experts; their checksums where
  // it is not `generated`.
  void ExpectLent(bool generated = false) {
    absl::StatusOr<FileDescriptor> file = Borrow();
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(::fcntl(file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT_EQ(::pwrite(file->get(), "x", 1, 0), -1);
    std::string begin(pack_.size(), '\0');
    EXPECT_EQ(::pread(file->get(), begin.data(), begin.size(), 0),
              static_cast<ssize_t>(pack_.size()));
    const auto pool = trunk::LentPool::Open(*std::move(file), Model(), 0, 1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    const ExpertPackLayout& layout = (*pool)->layout();
    const auto header_bytes = static_cast<size_t>(layout.header_bytes);
    EXPECT_EQ(begin.substr(0, header_bytes) == pack_.substr(0, header_bytes), !generated);
    const std::span<const std::byte> payload = (*pool)->Payload();
    ASSERT_EQ(payload.size(), pack_.size() - static_cast<size_t>(layout.payload_offset));
    EXPECT_EQ(std::memcmp(payload.data(), pack_.data() + layout.payload_offset, payload.size()), 0);
  }

  void ExpectRefused(const std::vector<std::string>& parts) {
    const absl::StatusOr<FileDescriptor> file = Borrow();
    EXPECT_EQ(file.status().code(), absl::StatusCode::kFailedPrecondition) << file.status();
    for (const std::string& part : parts) {
      EXPECT_NE(file.status().message().find(part), absl::string_view::npos)
          << part << " in " << file.status();
    }
  }

  static void End(Process& host) {
    host.Signal(SIGTERM);
    EXPECT_EQ(host.WaitExit(kTimeout).value_or(-1), 0) << host.Log();
  }

  TempDir source_;
  TempDir sockets_;
  MetricsRegistry metrics_;
  std::string segment_;
};

TEST_F(LentPoolProcessTest, AMappedPack) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto host = Host({"--pool_format=int8"});
  ExpectLent();
  EXPECT_TRUE(host->WaitForLine(fmt::format("bytes={}", pack_.size()), kTimeout).ok());
  // What is mapped is lent, whatever lies under its name by now.
  WriteFile(path_ + ".new", std::string(pack_.size(), 'x'));
  std::filesystem::rename(path_ + ".new", path_);
  ExpectLent();
  End(*host);
}

TEST_F(LentPoolProcessTest, ASegmentNewOrTakenOver) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  for (const char* reused : {"segment_reused=false", "segment_reused=true"}) {
    const auto host = Host({"--pool_format=int8", "--pool_memory=shm"});
    EXPECT_TRUE(host->WaitForLine(reused, kTimeout).ok()) << host->Log();
    ExpectLent();
    const std::string kept = segment_ + ".kept";
    std::filesystem::rename(segment_, kept);
    ExpectLent();
    std::filesystem::rename(kept, segment_);
    End(*host);
  }
}

TEST_F(LentPoolProcessTest, TheBytesOutliveTheHost) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto host = Host({"--pool_format=int8", "--pool_memory=shm"});
  const trunk::ExpectedModel model = Model();
  absl::StatusOr<FileDescriptor> file = Borrow();
  ASSERT_TRUE(file.ok()) << file.status();
  const auto pool = trunk::LentPool::Open(*std::move(file), model, 0, 1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  host->Signal(SIGKILL);
  EXPECT_EQ(host->WaitExit(kTimeout).value_or(-1), 128 + SIGKILL);
  std::filesystem::remove(segment_);
  const std::span<const std::byte> payload = (*pool)->Payload();
  EXPECT_EQ(
      std::memcmp(payload.data(), pack_.data() + (*pool)->layout().payload_offset, payload.size()),
      0);
}

TEST_F(LentPoolProcessTest, AnotherModelIsNotMapped) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto host = Host({"--pool_format=int8"});
  trunk::ExpectedModel model = Model();
  model.fingerprint[0] = model.fingerprint[0] == '0' ? '1' : '0';
  absl::StatusOr<FileDescriptor> file = Borrow();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(trunk::LentPool::Open(*std::move(file), model, 0, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(LentPoolProcessTest, MemoryOfTheHostAloneIsNotLent) {
  ASSERT_NO_FATAL_FAILURE(MakePack());
  const auto host = Host({"--pool_format=int8", "--pool_memory=anonymous"});
  ExpectRefused({address(), "memory of the host's process", "--pool_memory shm, or map"});
  End(*host);
}

TEST_F(LentPoolProcessTest, NorAreTheFilesOfTheCheckpoint) {
  const auto host = Host({});
  ExpectRefused({address(), "those of the checkpoint", "--pool_format int8, nf4 or int4"});
  End(*host);
}

TEST_F(LentPoolProcessTest, DummyWeightsAreLentFromSharedMemory) {
  const std::vector<std::string> dummy = {"--load_format=dummy", "--pool_format=nf4"};
  {
    const auto host = Host(dummy);
    ExpectRefused({address(), "memory of the host's process", "--pool_memory shm"});
    End(*host);
  }
  // With the weights that a pack of them has, made anew or taken over.
  ASSERT_NO_FATAL_FAILURE(MakePack("nf4", {dummy[0]}));
  for (const char* memory : {"--pool_memory=map", "--pool_memory=shm"}) {
    const auto host = Host({dummy[0], dummy[1], memory});
    ExpectLent();
    End(*host);
  }
  std::filesystem::remove(path_);
  for (const char* reused : {"segment_reused=false", "segment_reused=true"}) {
    const auto host = Host({dummy[0], dummy[1], "--pool_memory=shm"});
    EXPECT_TRUE(host->WaitForLine(reused, kTimeout).ok()) << host->Log();
    ExpectLent(/*generated=*/true);
    End(*host);
  }
}

}  // namespace
}  // namespace banyan::test
