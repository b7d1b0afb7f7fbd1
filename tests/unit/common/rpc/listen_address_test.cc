#include "common/rpc/listen_address.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "common/base/strings.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

int BoundUnixSocket(const std::string& path) {
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  std::memcpy(where.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&where), sizeof(where)), 0);
  EXPECT_EQ(listen(fd, 1), 0);
  return fd;
}

TEST(ListenFailureTest, UnixSocketOfALiveProcessIsTaken) {
  test::TempDir temp;
  const std::string path = temp.File("a.sock");
  EXPECT_TRUE(CheckUnixSocketFree("unix:" + path).ok());
  const int fd = BoundUnixSocket(path);
  EXPECT_EQ(Message(CheckUnixSocketFree("unix:" + path)),
            "cannot listen on unix:" + path + ": another process listens there");
  close(fd);
  // Now it is what a crash leaves.
  EXPECT_TRUE(CheckUnixSocketFree("unix:" + path).ok());
  RemoveUnixSocket("unix://" + path);
  EXPECT_FALSE(std::filesystem::exists(path));
  RemoveUnixSocket("unix:" + path);
}

TEST(ListenFailureTest, OtherFilesAreLeftAlone) {
  test::TempDir temp;
  const std::string path = temp.File("notes.txt");
  std::ofstream(path) << "keep";
  const absl::Status status = CheckUnixSocketFree("unix:" + path);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Message(status),
            "cannot listen on unix:" + path + ": the path exists and is no socket");
  RemoveUnixSocket("unix:" + path);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST(ListenFailureTest, SaysWhatTheSystemAnswers) {
  test::TempDir temp;
  EXPECT_EQ(Message(ExplainListenFailure("unix:" + temp.File("no/dir.sock"))),
            "cannot listen on unix:" + temp.File("no/dir.sock") + ": No such file or directory");
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(where);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&where), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&where), &size), 0);
  const std::string address = fmt::format("127.0.0.1:{}", ntohs(where.sin_port));
  EXPECT_EQ(Message(ExplainListenFailure(address)),
            "cannot listen on " + address + ": Address already in use");
  close(fd);
  EXPECT_EQ(Message(ExplainListenFailure("192.0.2.1:1")),
            "cannot listen on 192.0.2.1:1: Cannot assign requested address");
  EXPECT_TRUE(CheckUnixSocketFree(address).ok());
}

}  // namespace
}  // namespace banyan
