// `banyan` as people use it, against a trunk and two experts that `banyan serve` runs on the
// bundled demo model.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/strings.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/cli/served.h"
#include "tests/integration/cli/terminal_process.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Waits for the end of a process that is nobody's child here. True when it is gone.
bool AwaitGone(pid_t pid) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return errno == ESRCH;
  pollfd poll_fd = {fd, POLLIN, 0};
  const int ready = poll(&poll_fd, 1, 60000);
  close(fd);
  return ready == 1;
}

// --- nothing listens ---------------------------------------------------------------------------

TEST(Cli, SaysHowToStartWhatDoesNotListen) {
  const TempDir temp;
  const std::string address = "unix:" + temp.File("none.sock");
  for (const char* verb : {"chat", "generate hello", "status", "bench", "top", "top --once"}) {
    const Result result = Banyan(fmt::format("{} --server {} </dev/null", verb, address));
    EXPECT_EQ(result.exit_code, 1) << verb;
    EXPECT_EQ(result.error, "banyan: error: nothing listens on " + address +
                                ": start it with ./run.sh demo or banyan serve\n");
    EXPECT_THAT(result.out, IsEmpty());
  }
}

TEST(Cli, UsageErrorsAreOneLineAndExitTwo) {
  for (const char* args : {"",
                           "--bogus",
                           "chat --bogus",
                           "generate x --server nowhere",
                           "bench --rate 1 --concurrency 2",
                           "generate x --ids 1,2",
                           "generate --ids 1,x",
                           "generate x --logit_bias 7",
                           "serve",
                           "serve --model x --shards 9",
                           "serve --model x --split both",
                           "serve --model x --log_level loud",
                           "serve --model x --log_format xml",
                           "generate x --traceparent 00-1-2-3",
                           "top --interval 0",
                           "top --output xml",
                           "tokenize x",
                           "plan",
                           "plan --model x --vram_budget lots",
                           "plan --model x --shards 9",
                           "plan --model x --pool_format int9",
                           "serve --model /tmp --host_budget lots",
                           "serve --model /tmp --max_sequences=-1",
                           "pack",
                           "pack --model x --pool_format int9",
                           "pack --model x --shard 2/2",
                           "verify"}) {
    const Result result = Banyan(std::string(args) + " </dev/null");
    EXPECT_EQ(result.exit_code, 2) << args << ": " << result.error;
    EXPECT_EQ(std::count(result.error.begin(), result.error.end(), '\n'), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr("banyan: error: "));
  }
}

TEST(Cli, EveryVerbHasHelpAndVersion) {
  for (const char* verb : {"", "serve", "chat", "generate", "tokenize", "status", "top", "bench",
                           "plan", "pack", "verify"}) {
    const Result help = Banyan(std::string(verb) + " --help");
    EXPECT_EQ(help.exit_code, 0) << verb;
    EXPECT_THAT(help.out, HasSubstr("Usage: banyan"));
    const Result version = Banyan(std::string(verb) + " --version");
    EXPECT_EQ(version.exit_code, 0) << verb;
    EXPECT_THAT(version.out, HasSubstr("banyan 0."));
  }
}

TEST(Cli, ServeNamesAMissingModel) {
  const Result result = Banyan("serve --model /none/such");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.error, "banyan: error: --model /none/such: no such directory\n");
}

TEST(Cli, ServeRefusesWhatDoesNotFitBeforeItStarts) {
  const TempDir temp;
  const std::string command = fmt::format(
      "serve --model {} --listen unix:{} --log_file {} --run_dir {} --metrics_listen '' "
      "--backend cpu --host_budget ",
      kModel, temp.File("t.sock"), temp.File("log"), temp.path());
  const Result result = Banyan(command + "200MiB");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("200 MiB granted (--host_budget)"));
  EXPECT_THAT(result.error, HasSubstr("this would work: --host_budget "));
  EXPECT_FALSE(fs::exists(temp.File("log")));
}

TEST(Cli, PlanSaysWhatGoesWhere) {
  const Result text = Banyan(fmt::format("plan --model {} --bandwidth 100", kModel));
  EXPECT_EQ(text.exit_code, 0) << text.error;
  for (const char* part :
       {"8 layers (6 delta-net, 2 attention)", "routed experts", "unused: multi-token prediction",
        "trunk: host memory", "KV pages", "a context of 8192 tokens",
        "expert shard 1/2: columns 32 to 63 of every expert, bf16, mapped in place",
        "host memory of all on one machine", "one token reads",
        "tokens/s at 100.0 GB/s of host memory (--bandwidth)"}) {
    EXPECT_THAT(text.out, HasSubstr(part));
  }
  const Result gpu = Banyan(fmt::format(
      "plan --model {} --vram_budget 8GiB --split experts --shards 4 --pool_format int8 "
      "--max_context_tokens 4096 --output json",
      kModel));
  EXPECT_EQ(gpu.exit_code, 0) << gpu.error;
  const json plan = json::parse(gpu.out);
  EXPECT_EQ(plan["trunk"]["memory"], "gpu");
  EXPECT_EQ(plan["trunk"]["max_context_tokens"], 4096);
  EXPECT_EQ(plan["trunk"]["budget_bytes"], uint64_t{8} << 30);
  ASSERT_EQ(plan["shards"].size(), 4u);
  EXPECT_EQ(plan["shards"][3]["pool_format"], "int8");
  EXPECT_EQ(plan["shards"][3]["num_experts"], 8);
  EXPECT_GT(plan["bandwidth_bytes_per_second"], 1e8);  // measured
  EXPECT_GT(plan["roof_tokens_per_second"], 0);
}

TEST(Cli, ServeEndsWithTheLastWordsOfAServiceThatCannotStart) {
  const TempDir temp;
  fs::create_directory(temp.File("empty"));
  const Result result = Banyan(fmt::format(
      "serve --model {} --listen unix:{} --log_file {} --run_dir {} --metrics_listen ''",
      temp.File("empty"), temp.File("t.sock"), temp.File("log"), temp.path()));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("config.json"));
  EXPECT_THAT(result.error, HasSubstr("(log: " + temp.File("log") + ")"));
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(temp.path())) {
    left.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(left, testing::UnorderedElementsAre("empty", "log"));
}

TEST(Cli, TokenizesOffline) {
  const Result result =
      Banyan(fmt::format("tokenize --tokenizer {} --json_lines <<'END'\n"
                         "{{\"text\": \"Hello\"}}\n"
                         "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hi\"}}], "
                         "\"add_generation_prompt\": true}}\n"
                         "{{\"ids\": [1001, 39]}}\nEND\n",
                         kModel));
  EXPECT_EQ(result.exit_code, 0) << result.error;
  std::istringstream lines(result.out);
  std::string line;
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_FALSE(json::parse(line)["ids"].empty());
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_EQ(json::parse(line)["rendered"],
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_EQ(json::parse(line)["text"], "<|im_start|>H");

  const Result bad = Banyan(fmt::format(
      "tokenize --tokenizer {} --json_lines <<'END'\n{{\"text\": \"a\"}}\n{{\"ids\": [-1]}}\nEND\n",
      kModel));
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_EQ(bad.error, "");  // the error stands in the place of its line's result
  EXPECT_THAT(bad.out,
              HasSubstr("{\"error\":\"line 2: ids[0]: expected an id in [0, 1003), found -1\"}"));
}

// --- with a server -----------------------------------------------------------------------------

class CliWithServer : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    served_ = new Served();
    const absl::Status ready = served_->AwaitReady();
    ASSERT_TRUE(ready.ok()) << ready;
  }
  static void TearDownTestSuite() { delete std::exchange(served_, nullptr); }

  static std::vector<std::string> ChatArgs(std::vector<std::string> more = {}) {
    std::vector<std::string> args = {BinaryPath("banyan"), "chat",          "--server",
                                     served_->address(),   "--temperature", "0"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  static Served* served_;
};
Served* CliWithServer::served_ = nullptr;

TEST_F(CliWithServer, ChatsOverSeveralTurnsAndKeepsHistory) {
  const TempDir home;
  TerminalProcess chat(ChatArgs({"--stats"}), home.path());
  EXPECT_TRUE(chat.Await("/help lists commands", kPatience).ok());
  chat.Type("My name is Dennis.\r");
  absl::Status seen = chat.Await("Nice to meet you, Dennis!", kPatience);
  ASSERT_TRUE(seen.ok()) << seen;
  seen = chat.Await("first after", kPatience);
  EXPECT_TRUE(seen.ok()) << seen;
  chat.Type("What is my name?\r");
  seen = chat.Await("Your name is Dennis.", kPatience);
  ASSERT_TRUE(seen.ok()) << seen;
  EXPECT_TRUE(chat.Await("> ", kPatience).ok());
  chat.Type("/save " + home.File("saved.json") + "\r");
  EXPECT_TRUE(chat.Await("4 messages saved to", kPatience).ok());
  EXPECT_TRUE(chat.Await("> ", kPatience).ok());
  chat.Type("/reset\r");
  EXPECT_TRUE(chat.Await("The conversation starts anew.", kPatience).ok());
  EXPECT_TRUE(chat.Await("> ", kPatience).ok());
  EXPECT_TRUE(chat.AwaitKeyMode(kPatience).ok());
  chat.Type("\x10\x10\r");  // two lines up in the history: /save again
  EXPECT_TRUE(chat.Await("0 messages saved to", kPatience).ok());
  EXPECT_TRUE(chat.Await("> ", kPatience).ok());
  EXPECT_TRUE(chat.AwaitKeyMode(kPatience).ok());
  chat.Type("\x04");  // Ctrl-D
  const auto exit_code = chat.WaitExit(kPatience);
  ASSERT_TRUE(exit_code.ok()) << exit_code.status();
  EXPECT_EQ(*exit_code, 0);

  const std::string history = home.path() + "/.local/state/banyan/chat_history";
  EXPECT_THAT(FileText(history), HasSubstr("Dennis"));
  EXPECT_EQ(fs::status(history).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(CliWithServer, CtrlCStopsTheAnswerAndNotTheProgram) {
  const TempDir home;
  TerminalProcess chat(ChatArgs({"--ignore_eos", "--max_new_tokens", "6000"}), home.path());
  ASSERT_TRUE(chat.Await("> ", kPatience).ok());
  chat.Type("Tell me a story about a mouse near the meadow.\r");
  // The answer has begun and would go on for long; the echo of the question has no such word.
  absl::Status seen = chat.Await("Once", kPatience);
  ASSERT_TRUE(seen.ok()) << seen;
  chat.Type("\x03");
  seen = chat.Await("[stopped]", kPatience);
  ASSERT_TRUE(seen.ok()) << seen;
  ASSERT_TRUE(chat.Await("> ", kPatience).ok());
  // At the prompt it drops the line. The editor prints the prompt a moment before it takes keys.
  seen = chat.AwaitKeyMode(kPatience);
  ASSERT_TRUE(seen.ok()) << seen;
  chat.Type("never sent\x03");
  ASSERT_TRUE(chat.Await("> ", kPatience).ok());
  chat.Type("/undo\r");
  seen = chat.Await("Taken back.", kPatience);
  EXPECT_TRUE(seen.ok()) << seen;
  chat.Type("/quit\r");
  const auto exit_code = chat.WaitExit(kPatience);
  ASSERT_TRUE(exit_code.ok()) << exit_code.status();
  EXPECT_EQ(*exit_code, 0);
}

TEST_F(CliWithServer, ChatsThroughAPipe) {
  const Result result = Banyan(fmt::format(
      "chat --server {} --temperature 0 <<'END'\nMy name is Dennis.\n\nWhat is my name?\nEND\n",
      served_->address()));
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_EQ(result.out, "Nice to meet you, Dennis!\nYour name is Dennis.\n");
  EXPECT_THAT(result.error, IsEmpty());
}

TEST_F(CliWithServer, GeneratesTextJsonAndEvents) {
  const std::string ask = "generate --chat --temperature 0 'What is the capital of Japan?'";
  const Result text = Banyan(ask + served_->Server());
  EXPECT_EQ(text.exit_code, 0) << text.error;
  EXPECT_THAT(text.out, HasSubstr("Tokyo"));
  EXPECT_EQ(Banyan(ask + " --stream" + served_->Server()).out, text.out);

  const Result whole = Banyan(ask + " --output json --num_logprobs 2" + served_->Server());
  const json answer = json::parse(whole.out, nullptr, false);
  ASSERT_TRUE(answer.is_object()) << whole.out << whole.error;
  EXPECT_EQ(answer["text"].get<std::string>() + "\n", text.out);
  EXPECT_EQ(answer["reason"], "stop");
  EXPECT_EQ(answer["completion_tokens"], answer["token_ids"].size());
  EXPECT_EQ(answer["logprobs"][0]["top_ids"].size(), 2u);

  const Result events = Banyan(ask + " --output json --stream" + served_->Server());
  std::istringstream lines(events.out);
  std::string line, streamed;
  std::vector<std::string> kinds;
  while (std::getline(lines, line)) {
    const json event = json::parse(line);
    kinds.push_back(event.begin().key());
    if (kinds.back() == "chunk") streamed += event["chunk"]["text"];
  }
  ASSERT_GE(kinds.size(), 3u);
  EXPECT_EQ(kinds.front(), "started");
  EXPECT_EQ(kinds.back(), "finished");
  EXPECT_EQ(streamed + "\n", text.out);
}

TEST_F(CliWithServer, GeneratesFromStdinAndIds) {
  const Result piped =
      Banyan("generate --temperature 0 --max_new_tokens 4" + served_->Server() +
             " <<'END'\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nEND\n");
  EXPECT_EQ(piped.exit_code, 0) << piped.error;
  EXPECT_THAT(piped.out, Not(IsEmpty()));
  const Result ids = Banyan(
      "generate --ids '[1001, 652, 273]' --temperature 0 --max_new_tokens 3 "
      "--ignore_eos --output json" +
      served_->Server());
  EXPECT_EQ(ids.exit_code, 0) << ids.error;
  EXPECT_EQ(json::parse(ids.out)["completion_tokens"], 3);
  EXPECT_EQ(json::parse(ids.out)["reason"], "length");
}

TEST_F(CliWithServer, PassesTheServersWordsOn) {
  const Result result = Banyan("generate x --top_p 7" + served_->Server());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("top_p"));
  EXPECT_EQ(std::count(result.error.begin(), result.error.end(), '\n'), 1);
}

TEST_F(CliWithServer, ShowsItsStatus) {
  const Result text = Banyan("status --wait 30 --metrics ''" + served_->Server());
  EXPECT_EQ(text.exit_code, 0) << text.error;
  EXPECT_THAT(text.out, HasSubstr(": serving"));
  const Result result = Banyan("status --output json --metrics ''" + served_->Server());
  const json status = json::parse(result.out, nullptr, false);
  ASSERT_TRUE(status.is_object()) << result.out << result.error;
  EXPECT_EQ(status["serving"], true);
  EXPECT_EQ(status["load"]["phase"], "ready");
  EXPECT_EQ(status["model"]["num_experts"], 32);
  EXPECT_EQ(status["model"]["expert_activations"],
            status["model"]["backend"] == "cuda" ? "bf16" : "f32");
  ASSERT_EQ(status["shards"].size(), 2u);
  for (const json& shard : status["shards"]) {
    EXPECT_EQ(shard["split"], "width");
    EXPECT_EQ(shard["replicas"][0]["load"], "ready");
  }
}

TEST_F(CliWithServer, AsksAfterTheHealthOfTrunkAndExperts) {
  const Result info = Banyan("status --output json --metrics ''" + served_->Server());
  const json status = json::parse(info.out, nullptr, false);
  ASSERT_TRUE(status.is_object()) << info.out << info.error;
  for (const std::string& server :
       {served_->address(), status["shards"][0]["replicas"][0]["address"].get<std::string>()}) {
    const Result result = Banyan("status --health --server " + server);
    EXPECT_EQ(result.exit_code, 0) << result.error;
    EXPECT_EQ(result.out, server + ": serving\n");
  }
  const Result absent = Banyan("status --health --server unix:/nowhere/trunk.sock");
  EXPECT_EQ(absent.exit_code, 1);
  EXPECT_THAT(absent.error, HasSubstr("nowhere"));
}

TEST_F(CliWithServer, BenchCountsEveryToken) {
  for (const char* loop : {"--concurrency 4", "--rate 200"}) {
    const Result result = Banyan(fmt::format(
        "bench {} --requests 8 --prompt_tokens 33 --max_new_tokens 5 --output json --seed 7{}",
        loop, served_->Server()));
    ASSERT_EQ(result.exit_code, 0) << result.error;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["succeeded"], 8);
    EXPECT_EQ(report["output_tokens"], 40);
    EXPECT_EQ(report["prompt_tokens"], 8 * 33);
    EXPECT_GT(report["ttft_seconds"]["p50"], 0);
    EXPECT_GT(report["output_tokens_per_second"], 0);
  }
}

TEST_F(CliWithServer, AnswersTheEvalFileExactly) {
  const Result result = Banyan(fmt::format(
      "bench --eval {}/eval.json --concurrency 16 --output json{}", kModel, served_->Server()));
  ASSERT_EQ(result.exit_code, 0) << result.error;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["one_answer"], 214);
  EXPECT_EQ(report["exact"], 214) << report["mismatches"];
  EXPECT_EQ(report["answer_tokens"], 4176);
  EXPECT_NEAR(report["perplexity"].get<double>(), 1.1066, 0.0005);
}

// --- supervision -------------------------------------------------------------------------------

TEST(CliServe, RestartsWhatCrashes) {
  Served served;
  absl::Status ready = served.AwaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
  const std::string ask =
      "generate --chat --temperature 0 'What is the capital of Japan?'" + served.Server();
  const std::string answer = Banyan(ask).out;
  EXPECT_THAT(answer, HasSubstr("Tokyo"));
  for (const char* service : {"expert 1", "trunk"}) {
    ASSERT_EQ(kill(LoggedPid(served.log_path(), service), SIGKILL), 0);
    const auto again =
        served.process().WaitForLine(fmt::format("{} is ready again", service), kPatience);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(Banyan("status --wait 30 --metrics ''" + served.Server()).exit_code, 0);
    const Result after = Banyan(ask);
    EXPECT_EQ(after.out, answer) << after.error;
  }
  served.process().Signal(SIGTERM);
  EXPECT_EQ(served.process().WaitExit(kPatience).value_or(-1), 0);
}

TEST(CliServe, LeavesNothingBehind) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Served served;
    const absl::Status ready = served.AwaitReady();
    ASSERT_TRUE(ready.ok()) << ready;
    const std::vector<pid_t> pids = served.Pids();
    EXPECT_FALSE(fs::is_empty(served.run_parent()));
    served.process().Signal(signal);
    const auto exit_code = served.process().WaitExit(kPatience);
    ASSERT_TRUE(exit_code.ok()) << exit_code.status();
    EXPECT_EQ(*exit_code, 0);
    for (const pid_t pid : pids) EXPECT_EQ(kill(pid, 0), -1) << pid;
    EXPECT_TRUE(fs::is_empty(served.run_parent()));
    EXPECT_FALSE(fs::exists(served.address().substr(5)));
  }
}

TEST(CliServe, ServicesEndWithASupervisorThatIsKilled) {
  Served served;
  const absl::Status ready = served.AwaitReady();
  ASSERT_TRUE(ready.ok()) << ready;
  const std::vector<pid_t> pids = served.Pids();
  served.process().Signal(SIGKILL);
  for (const pid_t pid : pids) EXPECT_TRUE(AwaitGone(pid)) << pid;
}

}  // namespace
}  // namespace banyan::test
