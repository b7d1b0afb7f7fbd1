#include "common/base/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace banyan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CommandLineArguments, LastFirstWithoutTheProgram) {
  const char* const argv[] = {"banyan-trunk", "--model", "a b", "--page_size=64"};
  EXPECT_THAT(CommandLineArguments(4, argv), ElementsAre("--page_size=64", "a b", "--model"));
  EXPECT_THAT(CommandLineArguments(1, argv), IsEmpty());
}

TEST(CommandLineArguments, AnEmptyValueStaysWithItsName) {
  const char* const argv[] = {"x", "--metrics_listen=", "--model", "m", "--a=b=", "--=", "plain="};
  EXPECT_THAT(CommandLineArguments(7, argv),
              ElementsAre("plain=", "--=", "--a=b=", "m", "--model", "", "--metrics_listen"));
}

}  // namespace
}  // namespace banyan
