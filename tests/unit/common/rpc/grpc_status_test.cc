#include "common/rpc/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace banyan {
namespace {

TEST(GrpcStatusTest, EveryCodeSurvivesTheRoundTrip) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why");
    const grpc::Status sent = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpc(sent), status);
  }
}

TEST(GrpcStatusTest, CodesOutsideTheListBecomeUnknown) {
  for (int code : {-1, 17, 31}) {  // what the enumeration can hold
    const absl::Status status = FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(code), "odd"));
    EXPECT_EQ(status.code(), absl::StatusCode::kUnknown) << code;
    EXPECT_EQ(status.message(), "odd");
  }
}

TEST(GrpcStatusTest, MessagesAreCappedAtOneKiBBetweenCharacters) {
  const std::string fits(1024, 'x');
  EXPECT_EQ(ToGrpc(absl::InternalError(fits)).error_message(), fits);
  for (int lead = 0; lead < 3; ++lead) {
    std::string text(lead, 'x');
    while (text.size() < 3000) text += "\xe2\x82\xac";  // three bytes each
    const std::string capped = ToGrpc(absl::InternalError(text)).error_message();
    EXPECT_LE(capped.size(), 1024u);
    EXPECT_GE(capped.size(), 1018u);
    EXPECT_THAT(capped, testing::EndsWith("\xe2\x82\xac..."));
  }
}

}  // namespace
}  // namespace banyan
