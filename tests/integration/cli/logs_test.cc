// The logs of real processes: both formats, the level of a running process, and a request that is
// followed from the client to both experts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "tests/integration/cli/served.h"

namespace banyan::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";
const std::string kTraceparent = std::string("00-") + kTraceId + "-00f067aa0ba902b7-01";

std::vector<std::string> Lines(const std::string& path) {
  std::istringstream text(FileText(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

// Waits until `there` holds of the log's lines.
testing::AssertionResult Await(const std::string& path,
                               const std::function<bool(const std::vector<std::string>&)>& there) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (absl::Now() < deadline) {
    if (there(Lines(path))) return testing::AssertionSuccess();
    absl::SleepFor(absl::Milliseconds(5));
  }
  return testing::AssertionFailure() << FileText(path);
}

int Count(const std::vector<std::string>& lines, const std::vector<std::string>& texts) {
  int count = 0;
  for (const std::string& line : lines) {
    bool all = true;
    for (const std::string& text : texts) all &= line.find(text) != std::string::npos;
    count += all ? 1 : 0;
  }
  return count;
}

// A request with a name and a trace, and one with neither, each of many steps. With the trunk's own
// warm-up the experts hear of three.
void AskTwice(const Served& served) {
  const std::string ask =
      "generate --temperature 0 --ignore_eos --max_new_tokens 40 --output json ";
  const Result named = Banyan(ask + "--request_id order-66 --traceparent " + kTraceparent +
                              " hello" + served.Server());
  ASSERT_EQ(named.exit_code, 0) << named.error;
  EXPECT_EQ(json::parse(named.out)["request_id"], "order-66");
  const Result plain = Banyan(ask + "hello" + served.Server());
  ASSERT_EQ(plain.exit_code, 0) << plain.error;
  EXPECT_THAT(json::parse(plain.out)["request_id"].get<std::string>(), HasSubstr("r-"));
}

TEST(Logs, ARequestIsFollowedFromClientToExpertsInKeyValue) {
  Served served;
  const absl::Status ready = served.AwaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
  AskTwice(served);
  const std::string ids = std::string(" request_id=order-66 trace_id=") + kTraceId + " ";
  ASSERT_TRUE(Await(served.log_path(), [&](const auto& lines) {
    return Count(lines, {" request_ended "}) == 2 && Count(lines, {" request_joined "}) == 6;
  }));
  const std::vector<std::string> lines = Lines(served.log_path());
  EXPECT_EQ(Count(lines, {"trunk    | ", " info request_started" + ids + "prompt_tokens="}), 1);
  EXPECT_EQ(Count(lines, {"trunk    | ", " info request_ended" + ids + "outcome=ok prompt_tokens=",
                          " completion_tokens=40 ttft_ms="}),
            1);
  for (const char* expert : {"expert 0 | ", "expert 1 | "}) {
    EXPECT_EQ(
        Count(lines, {expert, " info request_joined" + ids + "step=", " layer=0 attempt=0 peer="}),
        1);
    EXPECT_EQ(Count(lines, {expert, " info request_joined request_id=r-"}), 1)
        << "of 40 steps each";
  }
  EXPECT_EQ(Count(lines, {"trace_id="}), 4) << "the other request has none";
}

TEST(Logs, ARequestIsFollowedFromClientToExpertsInJson) {
  Served served({"--log_format", "json"});
  const absl::Status ready = served.AwaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
  AskTwice(served);
  ASSERT_TRUE(Await(served.log_path(), [&](const auto& lines) {
    return Count(lines, {"\"request_ended\""}) == 2 && Count(lines, {"\"request_joined\""}) == 6;
  }));
  served.process().Signal(SIGTERM);
  ASSERT_EQ(served.process().WaitExit(kPatience).value_or(-1), 0);

  std::map<std::string, std::set<std::string>> services;  // event -> who wrote it of order-66
  for (const std::string& line : Lines(served.log_path())) {
    ASSERT_TRUE(json::accept(line)) << line;
    const json object = json::parse(line);
    for (const char* key : {"time", "level", "event", "service"}) {
      ASSERT_TRUE(object.contains(key) && object[key].is_string()) << line;
    }
    absl::Time time;
    std::string error;
    EXPECT_TRUE(
        absl::ParseTime(absl::RFC3339_full, object["time"].get<std::string>(), &time, &error))
        << line;
    EXPECT_NE(object["event"], "output") << line;
    if (object.value("request_id", "") != "order-66") continue;
    EXPECT_EQ(object["trace_id"], kTraceId);
    services[object["event"]].insert(object["service"]);
    if (object["event"] == "request_ended") {
      EXPECT_EQ(object["completion_tokens"], 40);
      EXPECT_EQ(object["outcome"], "ok");
      EXPECT_TRUE(object["ttft_ms"].is_number_float());
    }
    if (object["event"] == "request_joined") {
      EXPECT_EQ(object["layer"], 0);
      EXPECT_TRUE(object["step"].is_number_unsigned());
    }
  }
  const std::map<std::string, std::set<std::string>> expected = {
      {"request_started", {"trunk"}},
      {"request_ended", {"trunk"}},
      {"request_joined", {"expert 0", "expert 1"}}};
  EXPECT_EQ(services, expected);
}

TEST(Logs, TheLevelOfRunningProcessesChangesBySignal) {
  Served served({"--log_level", "warning"});
  const absl::Status ready = served.AwaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
  const std::string ask = "generate --max_new_tokens 2 hello" + served.Server();
  ASSERT_EQ(Banyan(ask).exit_code, 0);
  EXPECT_EQ(Count(Lines(served.log_path()), {" info "}), 0) << FileText(served.log_path());

  // The supervisor hands the step on: all four say so.
  const auto step = [&](int signal, const std::string& text) {
    served.process().Signal(signal);
    return Await(served.log_path(),
                 [&](const auto& lines) { return Count(lines, {" log_level " + text}) == 4; });
  };
  ASSERT_TRUE(step(SIGUSR1, "from=warning to=info signal=SIGUSR1"));
  ASSERT_EQ(Banyan(ask).exit_code, 0);
  ASSERT_TRUE(Await(served.log_path(), [&](const auto& lines) {
    return Count(lines, {" info request_ended "}) == 1 && Count(lines, {" request_joined "}) == 2;
  }));
  EXPECT_EQ(Count(Lines(served.log_path()), {" debug "}), 0);
  ASSERT_TRUE(step(SIGUSR1, "from=info to=debug signal=SIGUSR1"));
  ASSERT_EQ(Banyan(ask + " --request_id seen").exit_code, 0);
  ASSERT_TRUE(Await(served.log_path(), [&](const auto& lines) {
    return Count(lines, {" debug request_queued request_id=seen "}) == 1;
  }));
  ASSERT_TRUE(step(SIGUSR2, "from=debug to=info signal=SIGUSR2"));
  ASSERT_EQ(Banyan(ask + " --request_id unseen").exit_code, 0);
  ASSERT_TRUE(Await(served.log_path(), [&](const auto& lines) {
    return Count(lines, {" info request_ended request_id=unseen "}) == 1;
  }));
  EXPECT_EQ(Count(Lines(served.log_path()), {" debug ", "request_id=unseen"}), 0);
}

TEST(Logs, AProgramThatCannotStartSaysSoInItsFormat) {
  for (const char* program : {"banyan-trunk", "banyan-expert"}) {
    std::vector<std::string> args = {BinaryPath(program), "--model=/none", "--listen=127.0.0.1:0",
                                     "--metrics_listen=", "--log_format=json"};
    if (std::string_view(program) == "banyan-trunk") args.push_back("--experts=unix:/none");
    Process process(args);
    EXPECT_EQ(process.WaitExit(kPatience).value_or(-1), 1) << process.Log();
    std::istringstream text(process.Log());
    json last;
    for (std::string line; std::getline(text, line);) {
      ASSERT_TRUE(json::accept(line)) << line;
      last = json::parse(line);
    }
    EXPECT_EQ(last["event"], "failed");
    EXPECT_THAT(last["error"].get<std::string>(), HasSubstr("/none"));
  }
}

}  // namespace
}  // namespace banyan::test
