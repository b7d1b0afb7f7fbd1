// `banyan synth` through the real programs: what it writes is served, what it refuses is said.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/cluster.h"
#include "tests/integration/process.h"

namespace banyan::test {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(120);

class SynthProcess : public ::testing::Test {
 protected:
  // Exit code; what it said is in `log`.
  int Synth(std::vector<std::string> args, std::string* log = nullptr) {
    args.insert(args.begin(), {BinaryPath("banyan"), "synth"});
    Process process(args);
    const absl::StatusOr<int> code = process.WaitExit(kTimeout);
    EXPECT_TRUE(code.ok()) << code.status();
    if (log != nullptr) *log = process.Log();
    if (code.ok() && *code != 0 && log == nullptr) ADD_FAILURE() << process.Log();
    return code.value_or(-1);
  }

  std::vector<int32_t> GreedyIds(const std::string& model, const std::string& load_format) {
    ClusterOptions options;
    options.model_dir = model;
    options.num_shards = 2;
    options.unix_sockets = true;
    options.trunk_args = {"--load_format", load_format};
    options.expert_args = {"--load_format", load_format};
    Cluster cluster(options);
    const absl::Status started = cluster.Start();
    EXPECT_TRUE(started.ok()) << started;
    const absl::Status serving = cluster.AwaitServing(kTimeout);
    EXPECT_TRUE(serving.ok()) << serving << cluster.trunk()->Log();
    if (!serving.ok()) return {};
    inference::v1::GenerateRequest request;
    for (const int id : {5, 17, 300, 2000, 9}) request.mutable_token_ids()->add_ids(id);
    request.mutable_sampling()->set_max_new_tokens(12);
    request.mutable_sampling()->set_temperature(0);
    request.set_ignore_eos(true);
    const auto stub = cluster.NewStub();
    const absl::StatusOr<Answer> answer = Generate(*stub, request);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? answer->ids : std::vector<int32_t>{};
  }

  TempDir temp_;
};

TEST_F(SynthProcess, BF16IsServedAsTheGeneratedModelIs) {
  const std::string single = temp_.File("single");
  const std::string fused = temp_.File("fused");
  ASSERT_EQ(Synth({"--out", single, "--config", "tiny", "--shards", "3"}), 0);
  ASSERT_EQ(Synth({"--out", fused, "--config", single, "--fused"}), 0);
  const std::vector<int32_t> ids = GreedyIds(single, "auto");
  EXPECT_EQ(ids.size(), 12u);
  EXPECT_EQ(GreedyIds(fused, "auto"), ids);
  EXPECT_EQ(GreedyIds(single, "dummy"), ids);
}

TEST_F(SynthProcess, TheTokenizerIsCopied) {
  const std::string demo = std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo";
  const std::string out = temp_.File("out");
  ASSERT_EQ(Synth({"--out", out, "--config", demo, "--tokenizer", demo}), 0);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json"}) {
    EXPECT_EQ(ReadFile(out + "/" + name), ReadFile(demo + "/" + name)) << name;
  }
  std::string log;
  EXPECT_EQ(
      Synth({"--out", temp_.File("none"), "--config", "tiny", "--tokenizer", temp_.path()}, &log),
      1);
  EXPECT_NE(log.find("neither a tokenizer.json nor a vocab.json"), std::string::npos) << log;
}

TEST_F(SynthProcess, SaysTheSizeBeforeItStartsAndWhatIsWrong) {
  std::string log;
  EXPECT_EQ(Synth({"--out", temp_.File("big"), "--config", "qwen3-next-80b", "--format", "nf4",
                   "--dry_run"},
                  &log),
            0);
  EXPECT_NE(log.find("444531 tensors in 9 file(s), 42.3 GB"), std::string::npos) << log;
  // A disk that cannot hold it: 5 TB.
  EXPECT_EQ(Synth({"--out", temp_.File("big"), "--config", "qwen3-next-80b", "--set",
                   "num_experts=16384", "--shards", "200"},
                  &log),
            1);
  EXPECT_NE(log.find("bytes are free"), std::string::npos) << log;
  EXPECT_EQ(Synth({"--out", temp_.File("x"), "--config", "tiny", "--format", "gguf"}, &log), 2);
  EXPECT_EQ(Synth({"--out", temp_.File("x"), "--config", "small"}, &log), 1);
  EXPECT_NE(log.find("a geometry (qwen3-next-80b, tiny)"), std::string::npos) << log;
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path()));
}

TEST_F(SynthProcess, CtrlCLeavesNothing) {
  Process process({BinaryPath("banyan"), "synth", "--out", temp_.File("out"), "--config",
                   "qwen3-next-80b", "--set", "num_hidden_layers=1", "--threads", "1"});
  ASSERT_TRUE(process.WaitForLine("writing", kTimeout).ok());
  process.Signal(SIGINT);
  const absl::StatusOr<int> code = process.WaitExit(kTimeout);
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1);
  EXPECT_NE(process.Log().find("stopped"), std::string::npos) << process.Log();
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path()));
}

}  // namespace
}  // namespace banyan::test
