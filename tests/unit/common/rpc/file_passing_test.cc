#include "common/rpc/file_passing.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using testing::HasSubstr;

// Longer than any of this takes; a test that waits for it hangs visibly.
absl::Time Patience() { return absl::Now() + absl::Seconds(60); }

FileDescriptor Memory() { return FileDescriptor(memfd_create("test", MFD_CLOEXEC)); }

ino_t Inode(const FileDescriptor& file) {
  struct stat found = {};
  EXPECT_EQ(fstat(file.get(), &found), 0);
  return found.st_ino;
}

FileChannel Channel() {
  auto made = MakeFileChannel();
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(FilePassingTest, TheSameFileArrivesAsItWasOpened) {
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), "content");
  const FileDescriptor file(open(temp.File("a").c_str(), O_RDONLY | O_CLOEXEC));
  const FileChannel channel = Channel();
  ASSERT_EQ(SendFile(channel.far.get(), file.get()), absl::OkStatus());
  ASSERT_EQ(SendFile(channel.far.get(), Memory().get()), absl::OkStatus());
  const auto received = ReceiveFile(channel.near.get(), absl::InfinitePast());  // it is there
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(Inode(*received), Inode(file));
  EXPECT_EQ(fcntl(received->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(fcntl(received->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_TRUE(ReceiveFile(channel.near.get(), Patience()).ok());
}

TEST(FilePassingTest, IsWaitedFor) {
  const FileChannel channel = Channel();
  std::thread sender([&] {
    const FileDescriptor file = Memory();
    EXPECT_EQ(SendFile(channel.far.get(), file.get()), absl::OkStatus());
  });
  EXPECT_TRUE(ReceiveFile(channel.near.get(), Patience()).ok());
  sender.join();
}

TEST(FilePassingTest, NothingComesUntilTheDeadline) {
  const FileChannel channel = Channel();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(30);
  const auto received = ReceiveFile(channel.near.get(), deadline);
  EXPECT_EQ(received.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(absl::Now(), deadline);
}

TEST(FilePassingTest, AClosedEndIsAnErrorOnBothSides) {
  FileChannel channel = Channel();
  channel.far = FileDescriptor();
  const auto received = ReceiveFile(channel.near.get(), Patience());
  EXPECT_EQ(received.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(received.status()), HasSubstr("was closed before a file came"));
  const absl::Status sent = SendFile(channel.near.get(), Memory().get());
  EXPECT_EQ(sent.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(sent), HasSubstr("Broken pipe"));
}

TEST(FilePassingTest, OnlyThroughAConnectedUnixSocket) {
  const FileDescriptor file = Memory();
  const auto error = [&](const FileDescriptor& through) {
    const absl::Status sent = SendFile(through.get(), file.get());
    EXPECT_EQ(sent.code(), absl::StatusCode::kFailedPrecondition) << sent;
    return Message(sent);
  };
  const test::TempDir temp;
  test::WriteFile(temp.File("a"), "content");
  const FileDescriptor regular(open(temp.File("a").c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_THAT(error(regular), HasSubstr("is no Unix socket"));
  EXPECT_EQ(test::ReadFile(temp.File("a")), "content");
  int pipe_ends[2];
  ASSERT_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
  const FileDescriptor pipe_out(pipe_ends[0]), pipe_in(pipe_ends[1]);
  EXPECT_THAT(error(pipe_in), HasSubstr("is no Unix socket"));
  EXPECT_THAT(error(FileDescriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))),
              HasSubstr("is no Unix socket"));
  EXPECT_THAT(error(FileDescriptor()), HasSubstr("is no Unix socket"));
  EXPECT_THAT(error(FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0))),
              HasSubstr("not connected"));
  const FileDescriptor listening(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  std::strncpy(address.sun_path, temp.File("s").c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(listening.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(listening.get(), 1), 0);
  error(listening);
}

TEST(FilePassingTest, AFullSocketIsNotWaitedFor) {
  const FileChannel channel = Channel();
  const FileDescriptor file = Memory();
  absl::Status sent;
  for (int i = 0; i < 100000 && sent.ok(); ++i) sent = SendFile(channel.far.get(), file.get());
  EXPECT_EQ(sent.code(), absl::StatusCode::kUnavailable) << sent;
  EXPECT_TRUE(ReceiveFile(channel.near.get(), Patience()).ok());
}

TEST(FilePassingTest, OtherMessagesAreNoFile) {
  const FileChannel channel = Channel();
  for (const std::string content : {"F", "FF", "a longer one"}) {
    ASSERT_EQ(send(channel.far.get(), content.data(), content.size(), 0),
              static_cast<ssize_t>(content.size()));
    const auto received = ReceiveFile(channel.near.get(), Patience());
    EXPECT_EQ(received.status().code(), absl::StatusCode::kDataLoss) << received.status();
  }
  const uint8_t other = 'x';
  const FileDescriptor file = Memory();
  ASSERT_EQ(SendMessageWithFile(channel.far.get(), nullptr, {&other, 1}, file.get()), 0);
  EXPECT_EQ(ReceiveFile(channel.near.get(), Patience()).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(FilePassingTest, NotFromWhatIsNoSocket) {
  const FileDescriptor file = Memory();
  EXPECT_FALSE(ReceiveFile(file.get(), Patience()).ok());
  EXPECT_FALSE(ReceiveFile(-1, absl::Now() + absl::Milliseconds(5)).ok());
}

}  // namespace
}  // namespace banyan
