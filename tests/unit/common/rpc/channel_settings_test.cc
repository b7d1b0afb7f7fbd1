#include "common/rpc/channel_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace banyan {
namespace {

using testing::HasSubstr;

TEST(ListenAddressTest, AcceptsLoopbackAndUnixSockets) {
  for (const char* address : {"localhost:0", "127.0.0.1:50051", "127.1.2.3:65535", "[::1]:1",
                              "unix:/run/banyan/e0.sock", "unix:relative.sock"}) {
    EXPECT_TRUE(CheckListenAddress(address, false).ok()) << address;
  }
}

TEST(ListenAddressTest, OtherAddressesNeedPermission) {
  for (const char* address : {"0.0.0.0:50051", "[::]:50051", "10.0.0.7:1", "expert-0:50061"}) {
    const absl::Status status = CheckListenAddress(address, false);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr(address));
    EXPECT_THAT(std::string(status.message()), HasSubstr("--insecure_listen"));
    EXPECT_TRUE(CheckListenAddress(address, true).ok()) << address;
  }
}

TEST(ListenAddressTest, SaysWhatIsWrong) {
  const auto error = [](std::string_view address) {
    const absl::Status status = CheckListenAddress(address, true);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    return std::string(status.message());
  };
  EXPECT_THAT(error(""), HasSubstr("expected host:port, [v6]:port or unix:/path"));
  EXPECT_THAT(error("localhost"), HasSubstr("expected host:port"));
  EXPECT_THAT(error(":50051"), HasSubstr("expected host:port"));
  EXPECT_THAT(error("::1:50051"), HasSubstr("expected host:port, [v6]:port"));
  EXPECT_THAT(error("http://localhost:1"), HasSubstr("expected host:port"));
  EXPECT_THAT(error("localhost:"), HasSubstr("port \"\""));
  EXPECT_THAT(error("localhost:65536"), HasSubstr("port \"65536\", expected a number from 0"));
  EXPECT_THAT(error("localhost:-1"), HasSubstr("port \"-1\""));
  EXPECT_THAT(error("localhost:1x"), HasSubstr("port \"1x\""));
  EXPECT_THAT(error("unix:"), HasSubstr("expected a path"));
  EXPECT_THAT(error("unix:/" + std::string(200, 'x')), HasSubstr("path of 201 bytes"));
}

TEST(PrepareGrpcProcessTest, AddsToTheUsersExperiments) {
  setenv("GRPC_EXPERIMENTS", "flow_control_fixes", 1);
  PrepareGrpcProcess();
  EXPECT_STREQ(std::getenv("GRPC_EXPERIMENTS"), "flow_control_fixes,-tcp_read_chunks");
  PrepareGrpcProcess();
  EXPECT_STREQ(std::getenv("GRPC_EXPERIMENTS"), "flow_control_fixes,-tcp_read_chunks");
  unsetenv("GRPC_EXPERIMENTS");
  PrepareGrpcProcess();
  EXPECT_STREQ(std::getenv("GRPC_EXPERIMENTS"), "-tcp_read_chunks");
}

}  // namespace
}  // namespace banyan
