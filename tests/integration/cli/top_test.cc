// `banyan top` as people use it: in a terminal, in a pipe, against a server that works.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/integration/cli/served.h"
#include "tests/integration/cli/terminal_process.h"

namespace banyan::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class TopTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    served_ = new Served({}, "127.0.0.1:0");
    const absl::Status ready = served_->AwaitReady();
    ASSERT_TRUE(ready.ok()) << ready;
  }
  static void TearDownTestSuite() { delete std::exchange(served_, nullptr); }

  static std::vector<std::string> Args(std::vector<std::string> more = {}) {
    std::vector<std::string> args = {
        BinaryPath("banyan"),
        "top",
        "--server",
        served_->address(),
        "--metrics",
        served_->MetricsAddress("trunk"),
        "--expert_metrics",
        served_->MetricsAddress("expert 0") + "," + served_->MetricsAddress("expert 1"),
        "--interval",
        "0.2"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  static std::string Line(const std::string& more) {
    const std::vector<std::string> args = Args();
    return fmt::format("{} {}", fmt::join(args.begin() + 1, args.end(), " "), more);
  }

  // Keeps the server at work until it ends.
  static std::unique_ptr<Process> Work() {
    return std::make_unique<Process>(std::vector<std::string>{
        BinaryPath("banyan"), "generate", "--server", served_->address(), "--ignore_eos",
        "--max_new_tokens", "8000", "--stream", "once upon a time"});
  }

  static Served* served_;
};
Served* TopTest::served_ = nullptr;

TEST_F(TopTest, TellsTheStoryInATerminalAndGivesItBack) {
  const TempDir home;
  TerminalProcess top(Args(), home.path());
  absl::Status seen = top.Await("   serving", kPatience);
  ASSERT_TRUE(seen.ok()) << seen;
  EXPECT_FALSE(top.IsInLineMode());
  const std::unique_ptr<Process> work = Work();
  for (const char* text : {"tokens    ", "/s out", "step      ", " trunk    [", " experts  [",
                           "1/1 ready", " GB/s", "pages     [", "q: quit"}) {
    seen = top.Await(text, kPatience);
    ASSERT_TRUE(seen.ok()) << seen;
  }

  // Frames that were on their way when the window changed are as wide as before.
  top.Resize(34, 12);
  size_t widest = 0;
  do {
    ASSERT_TRUE(top.Await("\x1b[H", kPatience).ok());
    seen = top.Await("\x1b[J", kPatience);
    ASSERT_TRUE(seen.ok()) << seen;
    widest = 0;
    const std::string& frame = top.awaited();
    for (size_t begin = 0; begin < frame.size();) {
      const size_t end = std::min(frame.find("\x1b[K", begin), frame.size());
      widest = std::max(widest, end - begin);
      begin = end + 5;  // the sequence and the terminal's "\r\n"
    }
  } while (widest > 34);

  top.Type("q");
  const auto exit_code = top.WaitExit(kPatience);
  ASSERT_TRUE(exit_code.ok()) << exit_code.status();
  EXPECT_EQ(*exit_code, 0);
  EXPECT_THAT(top.unread(), HasSubstr("\x1b[?25h\x1b[?1049l"));
  EXPECT_TRUE(top.IsInLineMode());
}

TEST_F(TopTest, CtrlCAndSignalsGiveTheTerminalBackToo) {
  const TempDir home;
  for (const int signal : {0, SIGTERM, SIGHUP, SIGINT}) {
    TerminalProcess top(Args(), home.path());
    const absl::Status seen = top.Await("q: quit", kPatience);
    ASSERT_TRUE(seen.ok()) << seen;
    if (signal == 0) {
      top.Type("\x03");
    } else {
      kill(top.pid(), signal);
    }
    EXPECT_EQ(top.WaitExit(kPatience).value_or(-1), 0) << signal;
    EXPECT_THAT(top.unread(), HasSubstr("\x1b[?25h\x1b[?1049l"));
    EXPECT_TRUE(top.IsInLineMode());
  }
}

TEST_F(TopTest, OnceIsAPageOrAnObject) {
  const std::unique_ptr<Process> work = Work();
  ASSERT_TRUE(Banyan("generate hello --max_new_tokens 1" + served_->Server()).exit_code == 0);
  const Result text = Banyan(Line("--once"));
  EXPECT_EQ(text.exit_code, 0) << text.error;
  EXPECT_THAT(text.out, HasSubstr("   serving\n"));
  EXPECT_THAT(text.out, HasSubstr("\nrequests  1 running   0 queued"));
  EXPECT_THAT(text.out, HasSubstr("\nITL       p50 "));
  EXPECT_THAT(text.out, HasSubstr("\n sampling ["));
  EXPECT_EQ(text.out.find('\x1b'), std::string::npos);

  const Result result = Banyan(Line("--once --output json"));
  EXPECT_EQ(result.exit_code, 0) << result.error;
  const json top = json::parse(result.out, nullptr, false);
  ASSERT_TRUE(top.is_object()) << result.out;
  EXPECT_EQ(top["server"]["serving"], true);
  EXPECT_EQ(top["figures"]["running_requests"], 1);
  EXPECT_GT(top["figures"]["generated_tokens_per_second"], 0);
  EXPECT_GT(top["figures"]["itl_seconds"]["p99"], 0);
  double share = 0;
  for (const json& part : top["figures"]["step"]["split"]) share += part["share"].get<double>();
  EXPECT_NEAR(share, 1, 1e-6);
  ASSERT_EQ(top["experts"].size(), 2u);
  for (const json& expert : top["experts"]) {
    EXPECT_GT(expert["calls_per_second"], 0);
    EXPECT_GT(expert["call_seconds"]["p50"], 0);
    EXPECT_GT(expert["weight_bytes_per_second"], 0);
  }
}

TEST_F(TopTest, ALineAnIntervalWhereThereIsNoTerminal) {
  Process top(Args());
  for (int i = 0; i < 3; ++i) {
    const auto line = top.WaitForLine(" serving; 0 running, 0 queued; ", kPatience);
    ASSERT_TRUE(line.ok()) << line.status();
  }
  const std::string log = top.Log();
  EXPECT_EQ(log.find('\x1b'), std::string::npos);
}

TEST_F(TopTest, SaysWhatItCannotRead) {
  const Result result =
      Banyan("top --once --interval 0.1 --metrics 127.0.0.1:1" + served_->Server());
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_THAT(result.out, HasSubstr("   serving\n"));
  EXPECT_THAT(result.out, HasSubstr("metrics   no metrics at 127.0.0.1:1: "));
}

}  // namespace
}  // namespace banyan::test
