#include "common/rpc/memory_inbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/rpc/listen_address.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using testing::HasSubstr;

FileDescriptor Memory() { return FileDescriptor(memfd_create("test", MFD_CLOEXEC)); }

ino_t Inode(int fd) {
  struct stat found = {};
  EXPECT_EQ(fstat(fd, &found), 0);
  return found.st_ino;
}

size_t OpenFiles() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    count += entry.path().empty() ? 0 : 1;
  }
  return count;
}

class MemoryInboxTest : public testing::Test {
 protected:
  MemoryInboxTest() : inbox_(*MemoryInbox::Create(path_)) {}

  // A datagram that SendMemory does not send.
  void Send(const std::string& content, const std::vector<int>& files) {
    const FileDescriptor from(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = *UnixSocketAddress(path_);
    std::string text = content;
    iovec part = {text.data(), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 8)] = {};
    msghdr message = {};
    message.msg_name = &address;
    message.msg_namelen = sizeof(address);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!files.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(files.size() * sizeof(int));
      cmsghdr* const head = CMSG_FIRSTHDR(&message);
      head->cmsg_level = SOL_SOCKET;
      head->cmsg_type = SCM_RIGHTS;
      head->cmsg_len = CMSG_LEN(files.size() * sizeof(int));
      std::memcpy(CMSG_DATA(head), files.data(), files.size() * sizeof(int));
    }
    EXPECT_GE(sendmsg(from.get(), &message, 0), 0) << std::strerror(errno);
  }

  const test::TempDir temp_;
  const std::string path_ = temp_.File("e.memory");
  std::unique_ptr<MemoryInbox> inbox_;
};

TEST_F(MemoryInboxTest, GivesEachFileToItsNameOnce) {
  const FileDescriptor a = Memory(), b = Memory();
  ASSERT_TRUE(SendMemory(path_, {1}, a.get()).ok());
  ASSERT_TRUE(SendMemory(path_, {2}, b.get()).ok());
  const FileDescriptor second = inbox_->Take({2});
  const FileDescriptor first = inbox_->Take({1});
  ASSERT_TRUE(first.valid() && second.valid());
  EXPECT_EQ(Inode(first.get()), Inode(a.get()));
  EXPECT_EQ(Inode(second.get()), Inode(b.get()));
  EXPECT_FALSE(inbox_->Take({1}).valid());
  EXPECT_FALSE(inbox_->Take({3}).valid());
}

TEST_F(MemoryInboxTest, OtherDatagramsLeaveNothingOpen) {
  const FileDescriptor a = Memory(), b = Memory();
  const std::string name(16, '\0');
  const size_t before = OpenFiles();
  for (const auto& [content, files] : std::vector<std::pair<std::string, std::vector<int>>>{
           {name, {}},
           {name, {a.get(), b.get()}},
           {name, {a.get(), b.get(), a.get(), b.get()}},
           {name.substr(1), {a.get()}},
           {name + "x", {a.get()}},
           {std::string(4000, '\0'), {a.get()}},
           {"", {a.get()}}}) {
    Send(content, files);
    inbox_->Receive();
    EXPECT_EQ(OpenFiles(), before) << content.size() << " bytes, " << files.size() << " files";
  }
  EXPECT_FALSE(inbox_->Take({}).valid());
}

TEST_F(MemoryInboxTest, KeepsTheLatest) {
  const FileDescriptor file = Memory();
  const size_t before = OpenFiles();
  for (size_t i = 0; i < MemoryInbox::kMostKept + 3; ++i) {
    ASSERT_TRUE(SendMemory(path_, {static_cast<uint8_t>(i)}, file.get()).ok());
    inbox_->Receive();
  }
  EXPECT_EQ(OpenFiles(), before + MemoryInbox::kMostKept);
  EXPECT_FALSE(inbox_->Take({2}).valid());
  EXPECT_TRUE(inbox_->Take({3}).valid());
  EXPECT_TRUE(inbox_->Take({MemoryInbox::kMostKept + 2}).valid());
}

TEST_F(MemoryInboxTest, AFullOneRefusesAndIsEmptiedByItsOwner) {
  const FileDescriptor file = Memory();
  absl::Status sent;
  for (int i = 0; i < 10000 && sent.ok(); ++i) sent = SendMemory(path_, {1}, file.get());
  EXPECT_FALSE(sent.ok());
  EXPECT_THAT(std::string(sent.message()), HasSubstr(path_));
  for (int i = 0; i < 100; ++i) inbox_->Receive();
  ASSERT_TRUE(SendMemory(path_, {7}, file.get()).ok());
  EXPECT_TRUE(inbox_->Take({7}).valid());
}

// As unary calls use it beside the thread of the streams.
TEST_F(MemoryInboxTest, ServesSeveralThreads) {
  constexpr uint8_t kThreads = 4;
  constexpr uint8_t kFiles = 200;
  const size_t before = OpenFiles();
  std::atomic<int> at_work{kThreads};
  std::thread receiver([&] {
    while (at_work > 0) inbox_->Receive();
  });
  std::vector<std::thread> takers;
  for (uint8_t t = 0; t < kThreads; ++t) {
    takers.emplace_back([&, t] {
      for (uint8_t i = 0; i < kFiles; ++i) {
        const FileDescriptor sent = Memory();
        ASSERT_TRUE(SendMemory(path_, {t, i}, sent.get()).ok());
        const FileDescriptor taken = inbox_->Take({t, i});
        ASSERT_TRUE(taken.valid());
        EXPECT_EQ(Inode(taken.get()), Inode(sent.get()));
        EXPECT_FALSE(inbox_->Take({t, i}).valid());
      }
      --at_work;
    });
  }
  for (std::thread& taker : takers) taker.join();
  receiver.join();
  EXPECT_EQ(OpenFiles(), before);
}

TEST_F(MemoryInboxTest, RandomNamesDiffer) {
  const auto a = RandomMemoryName(), b = RandomMemoryName();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(*a, *b);
}

TEST_F(MemoryInboxTest, ASocketThatWasLeftBehindIsReplacedAndNothingElse) {
  EXPECT_EQ(std::filesystem::status(path_).type(), std::filesystem::file_type::socket);
  const auto next = MemoryInbox::Create(path_);
  ASSERT_TRUE(next.ok()) << next.status();
  const FileDescriptor file = Memory();
  ASSERT_TRUE(SendMemory(path_, {1}, file.get()).ok());
  EXPECT_TRUE((*next)->Take({1}).valid());
  const std::string other = temp_.File("file");
  std::ofstream(other) << "content";
  EXPECT_FALSE(MemoryInbox::Create(other).ok());
  EXPECT_TRUE(std::filesystem::is_regular_file(other));
}

TEST_F(MemoryInboxTest, NoneIsAnErrorThatNamesIt) {
  inbox_.reset();
  EXPECT_FALSE(std::filesystem::exists(path_));
  const FileDescriptor file = Memory();
  const absl::Status sent = SendMemory(path_, {1}, file.get());
  EXPECT_EQ(sent.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(sent.message()), HasSubstr(path_));
  const std::string long_path(200, 'x');
  EXPECT_EQ(SendMemory(long_path, {1}, file.get()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MemoryInbox::Create(long_path).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MemoryInboxPathTest, IsBesideTheSocket) {
  EXPECT_EQ(MemoryInboxPath("unix:/run/e0"), "/run/e0.memory");
  EXPECT_EQ(MemoryInboxPath("unix:///run/e0"), "/run/e0.memory");
  EXPECT_EQ(MemoryInboxPath("127.0.0.1:50061"), std::nullopt);
}

}  // namespace
}  // namespace banyan
