// `banyan status --watch` and what a load says of itself, against real services.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/cli/served.h"
#include "tests/integration/cli/terminal_process.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(120);

class LoadWatch : public ::testing::Test {
 protected:
  std::string TrunkAddress() const { return "unix:" + temp_.File("trunk.sock"); }
  std::string ExpertAddress(int shard) const {
    return fmt::format("unix:{}", temp_.File(fmt::format("expert{}.sock", shard)));
  }
  void StartTrunk() {
    WriteCluster();
    trunk_ = std::make_unique<Process>(std::vector<std::string>{
        BinaryPath("banyan-trunk"), "--model", model_, "--listen", TrunkAddress(),
        "--metrics_listen", "", "--cluster_config", temp_.File("cluster.json")});
    ASSERT_TRUE(trunk_->ListeningAddress(kTimeout).ok()) << trunk_->Log();
  }
  void StartExpert(int shard) {
    experts_.push_back(std::make_unique<Process>(std::vector<std::string>{
        BinaryPath("banyan-expert"), "--model", model_, "--listen", ExpertAddress(shard),
        "--metrics_listen", "", "--shard", fmt::format("{}/2", shard), "--pool_format", "int8",
        "--pool_dir", temp_.File("packs")}));
  }

  const TempDir temp_;
  const std::string model_ = std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo";
  std::unique_ptr<Process> trunk_;
  std::vector<std::unique_ptr<Process>> experts_;

 private:
  void WriteCluster() const {
    const json cluster = {{"shards", json::array({{{"replicas", {ExpertAddress(0)}}},
                                                  {{"replicas", {ExpertAddress(1)}}}})}};
    WriteText(temp_.File("cluster.json"), cluster.dump());
  }
  static void WriteText(const std::string& path, const std::string& text) {
    std::FILE* const file = std::fopen(path.c_str(), "w");
    ASSERT_NE(file, nullptr);
    std::fputs(text.c_str(), file);
    std::fclose(file);
  }
};

TEST_F(LoadWatch, FollowsTheTrunkAndEveryShardUntilItServes) {
  Process watch({BinaryPath("banyan"), "status", "--server", TrunkAddress(), "--watch"});
  // Nothing listens yet.
  ASSERT_TRUE(watch.WaitForLine("trunk: starting", kTimeout).ok());
  StartTrunk();
  ASSERT_TRUE(watch.WaitForLine("expert 1: starting", kTimeout).ok());
  ASSERT_TRUE(watch.WaitForLine("trunk: wait", kTimeout).ok());
  Process lines(
      {BinaryPath("banyan"), "status", "--server", TrunkAddress(), "--watch", "--output", "json"});
  StartExpert(0);
  ASSERT_TRUE(watch.WaitForLine("expert 0: ready", kTimeout).ok()) << experts_[0]->Log();
  StartExpert(1);
  ASSERT_TRUE(watch.WaitForLine("trunk: ready", kTimeout).ok()) << trunk_->Log();
  EXPECT_EQ(watch.WaitExit(kTimeout).value_or(-1), 0) << watch.Log();
  EXPECT_THAT(watch.Log(), HasSubstr("expert 0: ready"));

  EXPECT_EQ(lines.WaitExit(kTimeout).value_or(-1), 0) << lines.Log();
  std::istringstream log(lines.Log());
  std::string line, last;
  while (std::getline(log, line)) {
    if (!line.empty()) last = line;
  }
  const json services = json::parse(last)["services"];
  ASSERT_EQ(services.size(), 3u) << last;
  EXPECT_EQ(services[0]["phase"], "ready");
  EXPECT_EQ(services[1]["name"], "expert 0");
  EXPECT_EQ(services[1]["phase"], "ready");
  EXPECT_GT(services[0]["resident_bytes"], 1'000'000);

  // Each service's log has its phases with what they cost.
  for (const char* phase : {"headers", "plan", "read", "wait", "warm"}) {
    EXPECT_THAT(trunk_->Log(), HasSubstr(fmt::format("load_phase phase={} seconds=", phase)));
  }
  for (const char* phase : {"headers", "plan", "convert", "verify", "read", "warm"}) {
    EXPECT_THAT(experts_[0]->Log(), HasSubstr(fmt::format("load_phase phase={} seconds=", phase)));
  }
  EXPECT_THAT(experts_[0]->Log(), HasSubstr("cpus="));
  EXPECT_THAT(experts_[0]->Log(), HasSubstr("resident_bytes="));
}

TEST_F(LoadWatch, ATerminalShowsALineForEachServiceAndCtrlCEndsIt) {
  StartTrunk();
  TerminalProcess watch({BinaryPath("banyan"), "status", "--server", TrunkAddress(), "--watch"},
                        temp_.path());
  for (const char* line : {"trunk      wait", "expert 0   starting", "expert 1   starting"}) {
    const absl::Status shown = watch.Await(line, kTimeout);
    ASSERT_TRUE(shown.ok()) << shown;
  }
  watch.Type("\x03");
  EXPECT_EQ(watch.WaitExit(kTimeout).value_or(-1), 128 + 2);
}

TEST_F(LoadWatch, ALoadThatFailsIsSaidWithItsReason) {
  // One shard is configured, and the host that answers has a half.
  trunk_ = std::make_unique<Process>(std::vector<std::string>{
      BinaryPath("banyan-trunk"), "--model", model_, "--listen", TrunkAddress(), "--metrics_listen",
      "", "--experts", ExpertAddress(0)});
  Process watch({BinaryPath("banyan"), "status", "--server", TrunkAddress(), "--watch"});
  ASSERT_TRUE(watch.WaitForLine("trunk: wait", kTimeout).ok());
  StartExpert(0);
  EXPECT_EQ(watch.WaitExit(kTimeout).value_or(-1), 1) << watch.Log();
  EXPECT_THAT(watch.Log(), HasSubstr("could not load: "));
}

}  // namespace
}  // namespace banyan::test
