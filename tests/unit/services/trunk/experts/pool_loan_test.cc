// Both ends of a lent pool: what a host answers to whom, and what the trunk makes of it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc/channel_settings.h"
#include "common/rpc/file_passing.h"
#include "services/trunk/experts/expert_directory.h"
#include "tests/fakes/expert_host.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/self_process.h"
#include "tests/fakes/temp_dir.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::trunk {
namespace {

using testing::HasSubstr;
using namespace testing_experts;  // NOLINT: names of the small model

constexpr absl::Duration kPatience = absl::Seconds(60);

ino_t Inode(int fd) {
  struct stat found = {};
  EXPECT_EQ(fstat(fd, &found), 0);
  return found.st_ino;
}

class PoolLoanTest : public testing::Test {
 protected:
  PoolLoanTest() { test::WriteFile(Pool(), "the pool"); }

  std::string Pool() const { return temp_.File("pool"); }
  std::string Address(const std::string& name) const { return "unix:" + temp_.File(name); }

  absl::StatusOr<FileDescriptor> OpenPool() const {
    return FileDescriptor(open(Pool().c_str(), O_RDONLY | O_CLOEXEC));
  }
  expert::PoolLender::OpenFileFn Lends() const {
    return [this] { return OpenPool(); };
  }
  static expert::PoolLender::OpenFileFn Refuses(const std::string& why) {
    return [why] { return absl::FailedPreconditionError(why); };
  }

  // A host of a shard that stays.
  const std::string& Host(const std::string& listen, expert::PoolLender::OpenFileFn open_pool,
                          int32_t shard = 0, int32_t num_shards = 1) {
    executors_.push_back(std::make_unique<ScalarExecutor>(Geometry(false, shard, num_shards)));
    ExpertHost::Options options;
    options.listen = listen;
    options.open_pool = std::move(open_pool);
    hosts_.push_back(std::make_unique<ExpertHost>(
        options,
        MakeDescription(executors_.back()->geometry(), expert::v1::WIDTH, shard, num_shards,
                        kFingerprint),
        executors_.back().get()));
    return hosts_.back()->address();
  }

  static std::unique_ptr<expert::v1::Experts::Stub> Stub(const std::string& address) {
    return expert::v1::Experts::NewStub(grpc::CreateCustomChannel(
        address, grpc::InsecureChannelCredentials(), ExpertChannelArguments()));
  }

  // A trunk whose `count` first replicas have streams.
  std::unique_ptr<ExpertDirectory> Trunk(const std::vector<std::vector<std::string>>& shards,
                                         bool shared_memory = true, size_t count = 0) {
    ExpertDirectory::Options options;
    for (const auto& replicas : shards) options.cluster.shards.push_back({replicas});
    options.model = Model();
    options.shared_memory = shared_memory;
    options.connect_timeout = connect_timeout_;
    auto created = ExpertDirectory::Create(options, &metrics_);
    EXPECT_TRUE(created.ok()) << created.status();
    while (true) {
      size_t ready = 0;
      for (const auto& shard : (*created)->Shards()) {
        for (const auto& replica : shard.replicas) ready += replica.ready ? 1 : 0;
      }
      if (ready >= count) return *std::move(created);
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  static std::string Error(const ExpertDirectory& trunk, absl::StatusCode code) {
    const absl::StatusOr<FileDescriptor> file = trunk.BorrowPool(0);
    EXPECT_EQ(file.status().code(), code) << file.status();
    return std::string(file.status().message());
  }

  const test::TempDir temp_;
  absl::Duration connect_timeout_ = kPatience;
  MetricsRegistry metrics_;
  std::vector<std::unique_ptr<ScalarExecutor>> executors_;
  std::vector<std::unique_ptr<ExpertHost>> hosts_;
};

TEST_F(PoolLoanTest, TheFileOfTheHostArrivesReadOnly) {
  const auto trunk = Trunk({{Host(Address("a"), Lends())}}, true, 1);
  const absl::StatusOr<FileDescriptor> file = trunk->BorrowPool(0);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Inode(file->get()), Inode(OpenPool()->get()));
  EXPECT_EQ(fcntl(file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
}

TEST_F(PoolLoanTest, TheFirstReplicaThatLendsWins) {
  const std::vector<std::string> replicas = {
      Host("127.0.0.1:0", Lends()), Host(Address("a"), Refuses("in no file")),
      Host(Address("b"), Lends()), Host(Address("c"), Refuses("not asked"))};
  EXPECT_TRUE(Trunk({replicas}, true, 4)->BorrowPool(0).ok());
}

TEST_F(PoolLoanTest, ElseTheErrorOfTheLast) {
  const std::vector<std::string> replicas = {Host(Address("a"), Refuses("in no file")),
                                             Host(Address("b"), Refuses("nor this one"))};
  const auto trunk = Trunk({replicas}, true, 2);
  EXPECT_EQ(Error(*trunk, absl::StatusCode::kFailedPrecondition), Address("b") + ": nor this one");
}

TEST_F(PoolLoanTest, NobodyIsAskedWhereItCannotBe) {
  const auto error = [](const std::unique_ptr<ExpertDirectory>& trunk) {
    return Error(*trunk, absl::StatusCode::kFailedPrecondition);
  };
  const std::string whole = Host(Address("a"), Lends());
  EXPECT_THAT(error(Trunk({{whole}}, false, 1)), HasSubstr("--expert_transport grpc"));
  EXPECT_THAT(error(Trunk({{Host("127.0.0.1:0", Lends())}}, true, 1)),
              HasSubstr("takes a unix: address: shard 0 of 1: 127.0.0.1:"));
}

TEST_F(PoolLoanTest, EachShardHasItsOwn) {
  const auto trunk = Trunk(
      {{Host(Address("a"), Lends(), 0, 2)}, {Host(Address("b"), Refuses("in no file"), 1, 2)}},
      true, 2);
  EXPECT_TRUE(trunk->BorrowPool(0).ok());
  EXPECT_EQ(trunk->BorrowPool(1).status().message(), Address("b") + ": in no file");
}

TEST_F(PoolLoanTest, AHostThatIsNotThereIsUnavailable) {
  const auto trunk = Trunk({{Address("nobody")}});
  EXPECT_THAT(Error(*trunk, absl::StatusCode::kUnavailable), HasSubstr(Address("nobody")));
}

TEST_F(PoolLoanTest, AHostWithoutAnInboxIsNamed) {
  const auto trunk = Trunk({{Host(Address("a"), Lends())}}, true, 1);
  std::filesystem::remove(temp_.File("a.memory"));
  EXPECT_THAT(Error(*trunk, absl::StatusCode::kNotFound), HasSubstr(temp_.File("a.memory")));
}

TEST_F(PoolLoanTest, AHostThatHangsCostsTheTimeout) {
  const SelfProcess host({"--expert_child", Address("a"), "0", "1"});
  connect_timeout_ = absl::Seconds(2);
  const auto trunk = Trunk({{host.address()}}, true, 1);
  host.Signal(SIGSTOP);
  EXPECT_THAT(Error(*trunk, absl::StatusCode::kDeadlineExceeded), HasSubstr(Address("a")));
}

TEST_F(PoolLoanTest, ManyBorrowAtOnce) {
  const auto trunk = Trunk({{Host(Address("a"), Lends())}}, true, 1);
  const ino_t inode = Inode(OpenPool()->get());
  std::vector<std::thread> borrowers;
  for (int i = 0; i < 4; ++i) {
    borrowers.emplace_back([&] {
      for (int k = 0; k < 10; ++k) {
        const absl::StatusOr<FileDescriptor> file = trunk->BorrowPool(0);
        ASSERT_TRUE(file.ok()) << file.status();
        EXPECT_EQ(Inode(file->get()), inode);
      }
    });
  }
  for (std::thread& borrower : borrowers) borrower.join();
}

// What a host says to a caller of its RPC that sent `sent`, or nothing.
class LendPoolTest : public PoolLoanTest {
 protected:
  grpc::Status Lend(const std::string& address, const FileDescriptor& sent,
                    std::string name = std::string(16, 'n')) {
    if (sent.valid()) {
      MemoryName key = {};
      key.fill('n');
      const absl::Status status = SendMemory(*MemoryInboxPath(address), key, sent.get());
      EXPECT_TRUE(status.ok()) << status;
    }
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    expert::v1::LendPoolRequest request;
    request.set_socket_name(std::move(name));
    return Stub(address)->LendPool(&context, request, &response_);
  }

  expert::v1::LendPoolResponse response_;
};

TEST_F(LendPoolTest, TellsTheSize) {
  const std::string address = Host(Address("a"), Lends());
  auto channel = MakeFileChannel();
  ASSERT_TRUE(channel.ok()) << channel.status();
  const grpc::Status status = Lend(address, channel->far);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response_.file_bytes(), std::string("the pool").size());
  EXPECT_TRUE(ReceiveFile(channel->near.get(), absl::InfinitePast()).ok());
  // A name is good once.
  EXPECT_EQ(Lend(address, {}).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(LendPoolTest, OthersAreRefusedAndTheHostLivesOn) {
  const std::string address = Host(Address("a"), Lends());
  const auto error = [&](const FileDescriptor& sent, grpc::StatusCode code) {
    const grpc::Status status = Lend(address, sent);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    return status.error_message();
  };
  for (const size_t size : {0, 15, 17}) {
    const grpc::Status status = Lend(address, {}, std::string(size, 'n'));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(),
              "socket_name of " + std::to_string(size) + " bytes, expected 16");
  }
  EXPECT_THAT(error({}, grpc::StatusCode::NOT_FOUND), HasSubstr("no socket of that name"));
  EXPECT_THAT(error(*OpenPool(), grpc::StatusCode::FAILED_PRECONDITION),
              HasSubstr("no Unix socket"));
  const FileDescriptor memory(memfd_create("test", MFD_CLOEXEC));
  EXPECT_THAT(error(memory, grpc::StatusCode::FAILED_PRECONDITION), HasSubstr("no Unix socket"));
  auto channel = MakeFileChannel();
  ASSERT_TRUE(channel.ok()) << channel.status();
  channel->near = FileDescriptor();
  EXPECT_THAT(error(channel->far, grpc::StatusCode::FAILED_PRECONDITION), HasSubstr("Broken pipe"));
  const auto trunk = Trunk({{address}}, true, 1);
  EXPECT_TRUE(trunk->BorrowPool(0).ok());
}

TEST_F(LendPoolTest, AHostThatLoadsOrHasNoInboxSaysSo) {
  const auto channel = MakeFileChannel();
  ASSERT_TRUE(channel.ok()) << channel.status();
  const grpc::Status loading = Lend(Host(Address("a"), nullptr), channel->far);
  EXPECT_EQ(loading.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(loading.error_message(), HasSubstr("loading"));
  const grpc::Status tcp = Lend(Host("127.0.0.1:0", Lends()), {});
  EXPECT_EQ(tcp.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(tcp.error_message(), HasSubstr("no memory inbox"));
}

}  // namespace
}  // namespace banyan::trunk
