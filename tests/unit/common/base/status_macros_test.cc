#include "common/base/status_macros.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "common/base/strings.h"

namespace banyan {
namespace {

absl::Status Twice(const absl::Status& status, int* calls) {
  RETURN_IF_ERROR((++*calls, status));
  RETURN_IF_ERROR((++*calls, absl::OkStatus()));
  return absl::AlreadyExistsError("reached the end");
}

TEST(StatusMacros, ReturnIfErrorStopsAtTheFirst) {
  int calls = 0;
  EXPECT_EQ(Twice(absl::OkStatus(), &calls).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(calls, 2);
  calls = 0;
  EXPECT_EQ(Twice(absl::DataLossError("lost"), &calls), absl::DataLossError("lost"));
  EXPECT_EQ(calls, 1);
}

absl::StatusOr<std::unique_ptr<int>> Make(int value) {
  if (value < 0) return InvalidArgumentF("value {}: expected at least 0", value);
  return std::make_unique<int>(value);
}

absl::StatusOr<int> Sum(int a, int b) {
  ASSIGN_OR_RETURN(const std::unique_ptr<int> first, Make(a));
  std::unique_ptr<int> second;
  ASSIGN_OR_RETURN(second, Make(b));  // assigns to what exists, moves what cannot be copied
  return *first + *second;
}

TEST(StatusMacros, AssignOrReturn) {
  EXPECT_EQ(Sum(2, 3).value(), 5);
  EXPECT_EQ(Sum(-2, 3).status(), absl::InvalidArgumentError("value -2: expected at least 0"));
  EXPECT_EQ(Sum(2, -3).status(), absl::InvalidArgumentError("value -3: expected at least 0"));
}

TEST(StatusMacros, WorkInABranchWithoutBraces) {
  const auto f = [](bool fail) -> absl::Status {
    if (fail)
      RETURN_IF_ERROR(absl::UnavailableError("gone"));
    else
      RETURN_IF_ERROR(absl::OkStatus());
    return absl::OkStatus();
  };
  EXPECT_TRUE(f(false).ok());
  EXPECT_EQ(f(true).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace banyan
