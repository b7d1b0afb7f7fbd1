// `banyan plan` against what the services plan, log and take; and memory limits of real cgroups.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "common/base/strings.h"
#include "tests/fakes/sanitized.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/cluster.h"

namespace banyan::test {
namespace {

using ::testing::HasSubstr;

constexpr char kDemo[] = BANYAN_SOURCE_DIR "/deploy/models/demo";
constexpr absl::Duration kLong = absl::Seconds(120);
// RssFile counts the program and the checkpoint's pages, shared or not; the kernel rounds counters.
constexpr int64_t kSlackBytes = 16 << 20;

nlohmann::json PlanOf(const std::vector<std::string>& flags, int* exit_code = nullptr) {
  std::vector<std::string> args = {BinaryPath("banyan"), "plan", "--output=json", "--bandwidth=100",
                                   "--threads=1"};
  args.insert(args.end(), flags.begin(), flags.end());
  Process plan(args);
  const int code = plan.WaitExit(kLong).value_or(-1);
  if (exit_code != nullptr) *exit_code = code;
  return nlohmann::json::parse(plan.Log(), nullptr, /*allow_exceptions=*/false);
}

// The plan that a service logged: {"items": [...], "total_bytes": ..., "budget_bytes": ...}.
nlohmann::json LoggedPlan(const Process& service) {
  nlohmann::json out = {{"items", nlohmann::json::array()}};
  std::istringstream log(service.Log());
  for (std::string line; std::getline(log, line);) {
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) continue;
    const std::string event = json.value("event", "");
    if (event == "plan_memory") {
      out["items"].push_back(
          {{"item", json["item"]}, {"bytes", json["bytes"]}, {"note", json.value("note", "")}});
    } else if (event == "plan_memory_total") {
      out["total_bytes"] = json["bytes"];
      out["budget_bytes"] = json["budget_bytes"];
    } else if (event == "plan") {
      out["plan"] = json;
    }
  }
  return out;
}

struct Case {
  const char* name;
  int num_shards = 1;
  std::string split = "width";
  std::vector<std::string> both = {};     // of banyan plan and every service
  std::vector<std::string> trunk = {};    // and of the trunk
  std::vector<std::string> experts = {};  // and of the experts
  std::string host_budget = "";           // of banyan plan; the services get their parts
};

class PlanProcessTest : public ::testing::TestWithParam<Case> {};

TEST_P(PlanProcessTest, IsWhatTheServicesLog) {
  const Case& c = GetParam();
  TempDir temp;
  std::vector<std::string> flags = {std::string("--model=") + kDemo,
                                    fmt::format("--shards={}", c.num_shards), "--split=" + c.split};
  for (const auto* more : {&c.both, &c.trunk, &c.experts}) {
    flags.insert(flags.end(), more->begin(), more->end());
  }
  if (!c.host_budget.empty()) flags.push_back("--host_budget=" + c.host_budget);
  const nlohmann::json plan = PlanOf(flags);
  ASSERT_TRUE(plan.is_object());

  ClusterOptions options;
  options.model_dir = kDemo;
  options.num_shards = c.num_shards;
  options.split = c.split;
  options.unix_sockets = true;
  options.trunk_args = c.trunk;
  options.expert_args = c.experts;
  options.expert_args.push_back("--pool_dir=" + temp.path());
  for (auto* args : {&options.trunk_args, &options.expert_args}) {
    args->insert(args->end(), c.both.begin(), c.both.end());
    args->push_back("--log_format=json");
  }
  if (!c.host_budget.empty()) {
    options.trunk_args.push_back(
        fmt::format("--host_budget={}", plan["trunk"]["host_budget_bytes"].get<uint64_t>()));
    uint64_t largest = 0;
    for (const auto& shard : plan["shards"]) {
      largest = std::max(largest, shard["total_bytes"].get<uint64_t>());
    }
    options.expert_args.push_back(fmt::format("--host_budget={}", largest));
  }
  Cluster cluster(options);
  ASSERT_TRUE(cluster.Start().ok());
  ASSERT_TRUE(cluster.AwaitServing(kLong).ok()) << cluster.trunk()->Log();

  const nlohmann::json trunk = LoggedPlan(*cluster.trunk());
  EXPECT_EQ(trunk["items"], plan["trunk"]["items"]);
  EXPECT_EQ(trunk["total_bytes"], plan["trunk"]["total_bytes"]);
  if (!c.host_budget.empty()) {
    EXPECT_EQ(trunk["budget_bytes"], plan["trunk"]["budget_bytes"]);
  }
  for (const char* key : {"max_context_tokens", "max_sequences", "max_batch_tokens", "pages"}) {
    EXPECT_EQ(trunk["plan"][key], plan["trunk"][key]) << key;
  }
  EXPECT_EQ(trunk["plan"]["fingerprint"], plan["fingerprint"]);
  ASSERT_EQ(plan["shards"].size(), static_cast<size_t>(c.num_shards));
  for (int i = 0; i < c.num_shards; ++i) {
    SCOPED_TRACE(fmt::format("shard {}", i));
    const nlohmann::json expert = LoggedPlan(*cluster.expert(i));
    const nlohmann::json& shard = plan["shards"][static_cast<size_t>(i)];
    EXPECT_EQ(expert["items"], shard["items"]);
    EXPECT_EQ(expert["total_bytes"], shard["total_bytes"]);
    for (const char* key : {"pool_format", "num_experts", "width"}) {
      EXPECT_EQ(expert["plan"][key], shard[key]) << key;
    }
    if (!kSanitized) {
      EXPECT_LE(cluster.expert(i)->ResidentBytes(),
                shard["total_bytes"].get<int64_t>() + kSlackBytes);
    }
  }
  if (!kSanitized) {
    EXPECT_LE(cluster.trunk()->ResidentBytes(),
              plan["trunk"]["total_bytes"].get<int64_t>() + kSlackBytes);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, PlanProcessTest,
    ::testing::Values(
        Case{.name = "Defaults"},
        Case{.name = "WidthOfTwoShards",
             .num_shards = 2,
             .trunk = {"--max_context_tokens=2000", "--max_sequences=3"}},
        Case{.name = "TrunkInTwoParts", .trunk = {"--tensor_parallel=2", "--max_sequences=4"}},
        Case{.name = "ExpertsOfThreeShardsInInt8",
             .num_shards = 3,
             .split = "experts",
             .trunk = {"--max_batch_tokens=96"},
             .experts = {"--pool_format=int8"}},
        Case{.name = "Anonymous", .experts = {"--pool_format=nf4", "--pool_memory=anonymous"}},
        Case{.name = "GeneratedWeights", .both = {"--load_format=dummy"}},
        Case{.name = "OneBudgetForAll", .num_shards = 2, .host_budget = "500MiB"}),
    [](const auto& tested) { return std::string(tested.param.name); });

// What people have: a 4-bit checkpoint in nine shards, planned, served, and served again.
TEST(PlanSynthTest, NineShardsOfNf4) {
  TempDir temp;
  const std::string model = temp.File("model");
  Process synth({BinaryPath("banyan"), "synth", "--out", model, "--config",
                 BANYAN_SOURCE_DIR "/tests/data/tiny", "--set", "moe_intermediate_size=128",
                 "--format", "nf4", "--shards", "9"});
  ASSERT_EQ(synth.WaitExit(kLong).value_or(-1), 0) << synth.Log();
  ASSERT_TRUE(std::filesystem::exists(model + "/model-00009-of-00009.safetensors"));

  const nlohmann::json plan = PlanOf({"--model=" + model, "--shards=2"});
  ASSERT_TRUE(plan.is_object());
  int64_t count = 0;
  for (const auto& tensors : plan["tensors"]) {
    count += tensors["count"].get<int64_t>();
    if (tensors["class"] == "routed experts") {
      EXPECT_EQ(tensors["formats"], "nf4");
      EXPECT_EQ(tensors["destination"], "experts");
    }
  }
  EXPECT_GT(count, 4 * 16 * 3 * 6);  // companions are counted too
  for (const auto& shard : plan["shards"]) {
    EXPECT_EQ(shard["pool_format"], "nf4");
    EXPECT_EQ(shard["packed"], true);
  }

  ClusterOptions options;
  options.model_dir = model;
  options.num_shards = 2;
  options.unix_sockets = true;
  options.trunk_args = {"--log_format=json"};
  options.expert_args = {"--log_format=json", "--pool_dir=" + temp.File("packs")};
  for (int start = 0; start < 2; ++start) {
    SCOPED_TRACE(fmt::format("start {}", start));
    Cluster cluster(options);
    ASSERT_TRUE(cluster.Start().ok());
    ASSERT_TRUE(cluster.AwaitServing(kLong).ok()) << cluster.trunk()->Log();
    EXPECT_EQ(LoggedPlan(*cluster.trunk())["items"], plan["trunk"]["items"]);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(LoggedPlan(*cluster.expert(i))["items"],
                plan["shards"][static_cast<size_t>(i)]["items"]);
      // The second start converts nothing.
      EXPECT_EQ(cluster.expert(i)->Log().find("\"event\":\"packed\"") != std::string::npos,
                start == 0);
    }
    inference::v1::GenerateRequest request;
    for (const int id : {5, 17, 300}) request.mutable_token_ids()->add_ids(id);
    request.mutable_sampling()->set_max_new_tokens(4);
    request.set_ignore_eos(true);
    const auto stub = cluster.NewStub();
    const auto answer = Generate(*stub, request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->ids.size(), 4u);
  }
}

// "--host_budget 123" of "...would work: --host_budget 123 (...), ..." as a flag.
std::optional<std::string> ChangeIn(const std::string& log, const std::string& flag) {
  const size_t intro = log.find("would work: ");
  const size_t at = intro == std::string::npos ? intro : log.find(flag + " ", intro);
  if (at == std::string::npos) return std::nullopt;
  const size_t begin = at + flag.size() + 1;
  const size_t end = log.find_first_of(" ,;\n\\", begin);
  return flag + "=" + log.substr(begin, end - begin);
}

struct Limits {
  std::vector<std::string> args;
  std::string flag;  // "": serves as it is; else refused, and this flag's change is tried
};

// A few of the combinations of trunk_plan_property_test, through the program.
TEST(PlanLimitsTest, ServesOrIsRefusedWithAChangeThatWorks) {
  const Limits cases[] = {
      {{"--host_budget=1MiB"}, "--host_budget"},
      {{"--host_budget=124MiB"}, ""},
      {{"--host_budget=150MiB"}, ""},
      {{"--host_budget=140MiB", "--max_context_tokens=8000"}, "--max_context_tokens"},
      {{"--host_budget=150MiB", "--max_sequences=64"}, "--max_sequences"},
      {{"--host_budget=150MiB", "--max_batch_tokens=4096"}, "--max_batch_tokens"},
      {{"--host_budget=1GiB"}, ""},
  };
  ClusterOptions options;
  options.model_dir = kDemo;
  options.unix_sockets = true;
  Cluster experts(options);
  ASSERT_TRUE(experts.StartExpert(0).ok());
  for (const Limits& limits : cases) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(limits.args, " ")));
    TempDir temp;
    std::vector<std::string> args = {BinaryPath("banyan-trunk"),
                                     std::string("--model=") + kDemo,
                                     "--listen=unix:" + temp.File("t"),
                                     "--metrics_listen=",
                                     "--experts=" + experts.expert_address(0),
                                     "--threads=1",
                                     "--log_format=json"};
    args.insert(args.end(), limits.args.begin(), limits.args.end());
    auto trunk = std::make_unique<Process>(args);
    if (!limits.flag.empty()) {
      ASSERT_EQ(trunk->WaitExit(kLong).value_or(-1), 1) << trunk->Log();
      EXPECT_THAT(trunk->Log(), HasSubstr("needed"));
      EXPECT_THAT(trunk->Log(), HasSubstr("granted"));
      const std::optional<std::string> change = ChangeIn(trunk->Log(), limits.flag);
      ASSERT_TRUE(change.has_value()) << trunk->Log();
      args.push_back(*change);
      // The flag stands twice then; a later one does not replace it.
      std::erase_if(args, [&](const std::string& arg) {
        return arg != *change && arg.rfind(limits.flag + "=", 0) == 0;
      });
      trunk = std::make_unique<Process>(args);
    }
    ASSERT_TRUE(trunk->WaitForLine("\"event\":\"ready\"", kLong).ok()) << trunk->Log();
    Process answer({BinaryPath("banyan"), "generate", "--server", "unix:" + temp.File("t"),
                    "--max_new_tokens=8", "Once upon a time"});
    EXPECT_EQ(answer.WaitExit(kLong).value_or(-1), 0) << answer.Log();
    const nlohmann::json plan = LoggedPlan(*trunk);
    EXPECT_LE(plan["total_bytes"], plan["budget_bytes"]);
    if (!kSanitized) {
      EXPECT_LE(trunk->ResidentBytes(), plan["total_bytes"].get<int64_t>() + kSlackBytes);
    }
  }
}

// A memory cgroup below this process's own, of whichever version the machine mounts.
class MemoryCgroup {
 public:
  explicit MemoryCgroup(uint64_t limit_bytes) {
    std::ifstream self("/proc/self/cgroup");
    for (std::string line; std::getline(self, line);) {
      const size_t v1 = line.find(":memory:");
      if (v1 != std::string::npos && Make("/sys/fs/cgroup/memory" + line.substr(v1 + 8)) &&
          Write("memory.limit_in_bytes", limit_bytes)) {
        usage_ = "memory.max_usage_in_bytes";
        return;
      }
      if (line.rfind("0::", 0) == 0 && Make("/sys/fs/cgroup" + line.substr(3)) &&
          Write("memory.max", limit_bytes)) {
        usage_ = "memory.peak";
        return;
      }
    }
    path_.clear();
  }
  ~MemoryCgroup() {
    for (const std::string& path : made_) rmdir(path.c_str());
  }

  bool made() const { return !path_.empty(); }
  // The command line of a process inside.
  std::vector<std::string> Inside(const std::vector<std::string>& args) const {
    std::vector<std::string> out = {"/bin/sh", "-c",
                                    "echo $$ > " + path_ + "/cgroup.procs && exec \"$@\"", "sh"};
    out.insert(out.end(), args.begin(), args.end());
    return out;
  }
  uint64_t PeakBytes() const {
    uint64_t value = 0;
    std::ifstream(path_ + "/" + usage_) >> value;
    return value;
  }

 private:
  bool Make(const std::string& parent) {
    path_ = fmt::format("{}/banyan-plan-test-{}", parent, getpid());
    if (mkdir(path_.c_str(), 0755) != 0) return false;
    made_.push_back(path_);
    return true;
  }
  bool Write(const char* file, uint64_t value) const {
    std::ofstream out(path_ + "/" + file);
    return static_cast<bool>(out << value << std::flush);
  }

  std::string path_;
  std::vector<std::string> made_;
  std::string usage_;
};

// The host budget of a cluster whose trunk is on a GPU covers what that pins of the host.
TEST(PlanGpuTest, PinnedMemoryCountsInTheHostBudget) {
  const std::vector<std::string> flags = {std::string("--model=") + kDemo, "--vram_budget=4GiB"};
  const nlohmann::json plan = PlanOf(flags);
  ASSERT_TRUE(plan.is_object());
  uint64_t host = plan["trunk"]["host_bytes"].get<uint64_t>();
  uint64_t items = 0;
  for (const auto& item : plan["trunk"]["host_items"]) items += item["bytes"].get<uint64_t>();
  EXPECT_EQ(host, items);
  EXPECT_GT(host, uint64_t{32} << 20);
  for (const auto& shard : plan["shards"]) host += shard["total_bytes"].get<uint64_t>();
  const auto with_budget = [&](uint64_t bytes) {
    std::vector<std::string> args = {BinaryPath("banyan"), "plan", "--bandwidth=100"};
    args.insert(args.end(), flags.begin(), flags.end());
    args.push_back("--host_budget=" + std::to_string(bytes));
    Process process(args);
    const int code = process.WaitExit(kLong).value_or(-1);
    return std::make_pair(code, process.Log());
  };
  const auto [enough, text] = with_budget(host);
  EXPECT_EQ(enough, 0) << text;
  EXPECT_THAT(text, HasSubstr("trunk: host memory beside it"));
  const auto [less, refusal] = with_budget(host - 1);
  EXPECT_EQ(less, 1) << refusal;
  EXPECT_THAT(refusal, HasSubstr("trunk: staging"));
  EXPECT_THAT(refusal, HasSubstr("--host_budget " + std::to_string(host)));
}

TEST(PlanCgroupTest, AContainersLimitIsTheMemoryThereIs) {
  constexpr uint64_t kLimit = uint64_t{240} << 20;
  MemoryCgroup cgroup(kLimit);
  if (!cgroup.made()) GTEST_SKIP() << "no memory cgroup can be made here";
  ClusterOptions options;
  options.model_dir = kDemo;
  options.unix_sockets = true;
  Cluster experts(options);
  ASSERT_TRUE(experts.StartExpert(0).ok());
  TempDir temp;
  const std::string address = "unix:" + temp.File("t");
  {
    Process trunk(cgroup.Inside({BinaryPath("banyan-trunk"), std::string("--model=") + kDemo,
                                 "--listen=" + address,
                                 "--metrics_listen=", "--experts=" + experts.expert_address(0),
                                 "--threads=1", "--log_format=json"}));
    ASSERT_TRUE(trunk.WaitForLine("\"event\":\"ready\"", kLong).ok()) << trunk.Log();
    const nlohmann::json plan = LoggedPlan(trunk);
    EXPECT_LE(plan["budget_bytes"].get<uint64_t>(), kLimit / 4 * 3);
    EXPECT_LE(plan["total_bytes"], plan["budget_bytes"]);
    // A context as long as the plan says, of which every page is written.
    const int64_t context = plan["plan"]["max_context_tokens"];
    EXPECT_GE(context, 1024);
    inference::v1::GenerateRequest request;
    for (int64_t i = 0; i < context - 4; ++i) {
      request.mutable_token_ids()->add_ids(static_cast<int32_t>(5 + i % 100));
    }
    request.set_ignore_eos(true);
    request.mutable_sampling()->set_max_new_tokens(4);
    const auto stub = inference::v1::Inference::NewStub(
        grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    const auto answer = Generate(*stub, request, kLong);
    EXPECT_TRUE(answer.ok()) << answer.status() << trunk.Log();
    EXPECT_LE(cgroup.PeakBytes(), kLimit);
    trunk.Signal(SIGTERM);
    EXPECT_EQ(trunk.WaitExit(kLong).value_or(-1), 0) << trunk.Log();
  }
  // What cannot fit is refused with the numbers, not killed.
  Process expert(cgroup.Inside({BinaryPath("banyan-expert"), std::string("--model=") + kDemo,
                                "--listen=unix:" + temp.File("e"), "--metrics_listen=",
                                "--load_format=dummy", "--host_budget=200GiB", "--threads=1"}));
  Process large(cgroup.Inside({BinaryPath("banyan"), "plan", std::string("--model=") + kDemo,
                               "--max_sequences=1000", "--bandwidth=1"}));
  EXPECT_EQ(large.WaitExit(kLong).value_or(-1), 1) << large.Log();
  EXPECT_THAT(large.Log(), HasSubstr("would work: --max_sequences "));
  ASSERT_TRUE(expert.WaitForLine("plan_memory_total", kLong).ok()) << expert.Log();
  expert.Signal(SIGTERM);
  EXPECT_EQ(expert.WaitExit(kLong).value_or(-1), 0) << expert.Log();
}

}  // namespace
}  // namespace banyan::test
