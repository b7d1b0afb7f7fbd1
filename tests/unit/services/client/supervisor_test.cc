#include "services/client/supervisor/supervisor.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/base/strings.h"
#include "services/client/supervisor/child_process.h"
#include "services/client/supervisor/restart_backoff.h"
#include "services/client/supervisor/run_directory.h"
#include "services/client/supervisor/thread_shares.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::client {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(ShareThreads, StaysWithinTheMachineAndGivesEachOne) {
  EXPECT_EQ(ShareThreads(2, 2, false).trunk, 1);
  EXPECT_EQ(ShareThreads(2, 2, false).expert, 1);
  EXPECT_EQ(ShareThreads(16, 2, false).trunk, 4);
  EXPECT_EQ(ShareThreads(16, 2, false).expert, 6);
  for (int cpus = 1; cpus <= 130; ++cpus) {
    for (int experts = 1; experts <= 8; ++experts) {
      const ThreadShares shares = ShareThreads(cpus, experts, false);
      EXPECT_GE(shares.trunk, 1);
      EXPECT_GE(shares.expert, 1);
      if (cpus >= experts + 1) {
        EXPECT_LE(shares.trunk + experts * shares.expert, cpus) << cpus << " " << experts;
      }
    }
  }
}

TEST(ShareThreads, LeavesOneCpuToATrunkOnAGpu) {
  EXPECT_EQ(ShareThreads(16, 1, true).expert, 15);
  EXPECT_EQ(ShareThreads(16, 2, true).expert, 7);
  EXPECT_EQ(ShareThreads(16, 1, true).trunk, 4);  // to load
  EXPECT_EQ(ShareThreads(1, 1, true).expert, 1);
}

TEST(RestartBackoff, DoublesUpToALimitAndForgetsAfterAMinuteOfWork) {
  RestartBackoff backoff;
  EXPECT_EQ(backoff.Next(absl::Seconds(1)), absl::Milliseconds(250));
  EXPECT_EQ(backoff.Next(absl::Seconds(59)), absl::Milliseconds(500));
  for (int i = 0; i < 10; ++i) backoff.Next(absl::ZeroDuration());
  EXPECT_EQ(backoff.Next(absl::ZeroDuration()), absl::Seconds(15));
  EXPECT_EQ(backoff.Next(absl::Minutes(1)), absl::Milliseconds(250));
}

// Runs it to its end; its lines and how it ended.
ChildProcess::End RunToEnd(ChildProcess& child, std::vector<std::string>& lines) {
  for (;;) {
    if (child.output_fd() >= 0) {
      pollfd fd = {child.output_fd(), POLLIN, 0};
      poll(&fd, 1, 20000);
      for (std::string& line : child.ReadLines()) lines.push_back(std::move(line));
    } else if (const auto end = child.Poll()) {
      return *end;
    }
  }
}

TEST(ChildProcess, GivesLinesOfBothStreamsAndTheExitCode) {
  auto child =
      ChildProcess::Start({"/bin/sh", "-c", "echo out; echo error >&2; printf unfinished; exit 7"});
  ASSERT_TRUE(child.ok()) << child.status();
  std::vector<std::string> lines;
  const ChildProcess::End end = RunToEnd(**child, lines);
  EXPECT_THAT(lines, ElementsAre("out", "error", "unfinished"));
  EXPECT_EQ(end.ToString(), "exit code 7");
  EXPECT_FALSE((*child)->running());
}

TEST(ChildProcess, CutsAnEndlessLine) {
  auto child = ChildProcess::Start({"/bin/sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x"});
  ASSERT_TRUE(child.ok());
  std::vector<std::string> lines;
  RunToEnd(**child, lines);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].size(), 16384u);
  EXPECT_EQ(lines[0].size() + lines[1].size() + lines[2].size(), 40000u);
}

TEST(ChildProcess, IsAloneInItsProcessGroupAndNamesItsSignal) {
  auto child = ChildProcess::Start({"/bin/sleep", "1000"});
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(getpgid((*child)->pid()), (*child)->pid());
  (*child)->Signal(SIGKILL);
  std::vector<std::string> lines;
  EXPECT_EQ(RunToEnd(**child, lines).ToString(), "signal 9 (Killed)");
}

TEST(ChildProcess, AChangeOfTheLogLevelDoesNotEndWhatIsStillStarting) {
  auto child = ChildProcess::Start({"/bin/sh", "-c", "kill -USR1 $$; kill -USR2 $$; echo alive"});
  ASSERT_TRUE(child.ok());
  std::vector<std::string> lines;
  EXPECT_EQ(RunToEnd(**child, lines).ToString(), "exit code 0");
  EXPECT_THAT(lines, ElementsAre("alive"));
}

TEST(ChildProcess, NamesAMissingProgram) {
  EXPECT_EQ(ToStd(ChildProcess::Start({"/none/such"}).status().message()),
            "/none/such: No such file or directory");
}

TEST(RunDirectory, IsPrivateAndGoesWithItsFiles) {
  const test::TempDir temp;
  std::string path;
  {
    auto run = RunDirectory::Create(temp.path());
    ASSERT_TRUE(run.ok()) << run.status();
    path = (*run)->path();
    EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_all);
    ASSERT_TRUE((*run)->Write("cluster.json", "{}").ok());
    EXPECT_EQ(ReadFile((*run)->File("cluster.json")), "{}");
    EXPECT_EQ(RunDirectory::RemoveAbandoned(temp.path()), 0);  // in use
    EXPECT_TRUE(fs::exists(path));
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST(RunDirectory, RemovesWhatADeadSupervisorLeft) {
  const test::TempDir temp;
  const fs::path left = fs::path(temp.path()) / fmt::format("banyan-{}-abcdef", getuid());
  const fs::path strange = fs::path(temp.path()) / fmt::format("banyan-{}-nolock", getuid());
  fs::create_directory(left);
  fs::create_directory(strange);
  std::ofstream(left / "lock").close();
  std::ofstream(left / "e0.sock").close();
  auto run = RunDirectory::Create(temp.path());
  ASSERT_TRUE(run.ok());
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(strange));  // no lock file: maybe no supervisor's
}

TEST(RunDirectory, SaysWhereItCannotBe) {
  EXPECT_THAT(std::string(ToStd(RunDirectory::Create("/none").status().message())),
              HasSubstr("cannot make a directory in /none: No such file"));
}

TEST(Supervisor, EndsWhenAServiceCannotStartAndGivesItsLastWords) {
  const test::TempDir temp;
  BlockSupervisorSignals();
  SupervisorOptions options;
  options.log_path = temp.File("server.log");
  // The trunk works; the expert gives up. Both must be gone at the end.
  const std::string pid_file = temp.File("pid");
  options.services.push_back({"trunk",
                              ServiceKind::kTrunk,
                              "unix:" + temp.File("t.sock"),
                              {"/bin/sh", "-c", "echo $$ >" + pid_file + "; exec sleep 1000"}});
  options.services.push_back({"expert 0",
                              ServiceKind::kExpert,
                              "unix:" + temp.File("e.sock"),
                              {"/bin/sh", "-c",
                               "until test -s " + pid_file +
                                   "; do :; done; echo first; echo 'no such model' >&2; exit 2"}});
  std::FILE* out = std::fopen(temp.File("out").c_str(), "w");
  {
    auto supervisor = Supervisor::Create(options, out, /*is_terminal=*/false);
    ASSERT_TRUE(supervisor.ok()) << supervisor.status();
    const absl::Status status = (*supervisor)->Run();
    EXPECT_EQ(
        ToStd(status.message()),
        "expert 0 did not start (exit code 2): no such model (log: " + options.log_path + ")");
  }
  std::fclose(out);
  const std::string log = ReadFile(options.log_path);
  EXPECT_THAT(log, HasSubstr("expert 0 | first\nexpert 0 | no such model\n"));
  EXPECT_THAT(log, HasSubstr("ended name=trunk by=\"signal 15 (Terminated)\""));
  EXPECT_THAT(ReadFile(temp.File("out")), HasSubstr("trunk: starting\n"));
  EXPECT_EQ(kill(std::stoi(ReadFile(pid_file)), 0), -1);
}

TEST(Supervisor, NamesAMissingProgramBeforeItStartsAnything) {
  const test::TempDir temp;
  SupervisorOptions options;
  options.log_path = temp.File("server.log");
  options.services.push_back({"trunk", ServiceKind::kTrunk, "unix:/x", {"/none/banyan-trunk"}});
  EXPECT_EQ(ToStd(Supervisor::Create(options, stdout, false).status().message()),
            "/none/banyan-trunk is missing: expected beside banyan");
  EXPECT_FALSE(fs::exists(options.log_path));
}

}  // namespace
}  // namespace banyan::client
