// What is written is what Checkpoint reads, and nothing half is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"
#include "common/synth/quantise.h"
#include "common/synth/synth_config.h"
#include "common/synth/synth_plan.h"
#include "common/synth/synth_writer.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using ::testing::HasSubstr;

constexpr SynthFormat kFormats[] = {SynthFormat::kBF16, SynthFormat::kNF4, SynthFormat::kNF4Single,
                                    SynthFormat::kInt8, SynthFormat::kFP8};

SynthPlan MakePlan(const SynthOptions& options, std::vector<std::string> values = {}) {
  absl::StatusOr<SynthConfig> config = MakeSynthConfig("tiny", values);
  EXPECT_TRUE(config.ok()) << config.status();
  absl::StatusOr<SynthPlan> plan = PlanSynth(*config, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

absl::Status Write(const SynthPlan& plan, const std::string& directory, int num_threads = 3) {
  WorkerPool pool({.num_threads = num_threads});
  return WriteSynth(plan, {}, directory, pool, [](const SynthProgress&) { return true; });
}

std::vector<std::byte> BytesOf(const TensorView& view) {
  return {view.data, view.data + view.size_bytes()};
}

class SynthFiles : public ::testing::Test {
 protected:
  test::TempDir temp_;
};

TEST_F(SynthFiles, EveryFormatIsReadAsItWasPlanned) {
  for (const SynthFormat format : kFormats) {
    for (const bool fused : {false, true}) {
      for (const int32_t num_files : {fused ? 1 : 3}) {
        SCOPED_TRACE(
            fmt::format("{} fused {} files {}", SynthFormatName(format), fused, num_files));
        const SynthPlan plan = MakePlan({.format = format, .fused = fused, .num_files = num_files});
        const std::string directory =
            temp_.File(fmt::format("{}-{}-{}", SynthFormatName(format), fused, num_files));
        ASSERT_TRUE(Write(plan, directory).ok());
        uint64_t bytes = 0;
        for (const auto& file : std::filesystem::directory_iterator(directory)) {
          bytes += file.file_size();
        }
        EXPECT_EQ(bytes, plan.total_bytes);
        const auto checkpoint = Checkpoint::Open(directory);
        ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
        EXPECT_EQ((*checkpoint)->files().size(), static_cast<size_t>(num_files));
        ASSERT_EQ((*checkpoint)->entries().size(), plan.tensors.size());
        for (const SynthTensor& tensor : plan.tensors) {
          const Checkpoint::Entry* const entry = (*checkpoint)->Find(tensor.name);
          ASSERT_NE(entry, nullptr) << tensor.name;
          EXPECT_EQ(entry->view.dtype, tensor.dtype) << tensor.name;
          EXPECT_EQ(entry->view.shape, tensor.shape) << tensor.name;
          EXPECT_EQ((*checkpoint)->FileOf(*entry),
                    plan.files[static_cast<size_t>(tensor.file)].name);
        }
      }
    }
  }
}

// Names and types of the fixtures that the formats' own libraries wrote.
TEST_F(SynthFiles, HasTheTensorsOfTheReferenceCheckpoints) {
  const std::pair<SynthFormat, const char*> kReferences[] = {
      {SynthFormat::kNF4, "tiny-nf4"},
      {SynthFormat::kNF4Single, "tiny-nf4-single"},
      {SynthFormat::kInt8, "tiny-int8"},
      {SynthFormat::kFP8, "tiny-fp8"}};
  const std::string data = std::string(BANYAN_SOURCE_DIR) + "/tests/data";
  for (const auto& [format, name] : kReferences) {
    SCOPED_TRACE(name);
    const auto reference = Checkpoint::Open(data + "/" + name);
    ASSERT_TRUE(reference.ok()) << reference.status();
    const SynthPlan plan = MakePlan({.format = format});
    EXPECT_EQ(plan.tensors.size(), (*reference)->entries().size());
    for (const SynthTensor& tensor : plan.tensors) {
      const Checkpoint::Entry* const entry = (*reference)->Find(tensor.name);
      ASSERT_NE(entry, nullptr) << tensor.name;
      EXPECT_EQ(entry->view.dtype, tensor.dtype) << tensor.name;
      // The JSON of a quant_state is as long as its numbers.
      if (!tensor.name.ends_with("bitsandbytes__nf4")) {
        EXPECT_EQ(entry->view.shape, tensor.shape) << tensor.name;
      }
      if (tensor.name.ends_with("nested_quant_map")) {
        EXPECT_EQ(std::memcmp(entry->view.data, DynamicMap().data(), 1024), 0);
      }
    }
    const auto config = nlohmann::json::parse(test::ReadFile(data + "/" + name + "/config.json"));
    const auto ours = nlohmann::json::parse(plan.config);
    EXPECT_EQ(ours["quantization_config"]["quant_method"],
              config["quantization_config"]["quant_method"]);
    if (format != SynthFormat::kFP8) {
      EXPECT_EQ(ours["quantization_config"], config["quantization_config"]);
    }
  }
}

TEST_F(SynthFiles, BF16IsTheDummyModel) {
  const std::string directory = temp_.File("bf16");
  ASSERT_TRUE(Write(MakePlan({.num_files = 2}), directory).ok());
  const auto written = OpenModel(directory, LoadFormat::kAuto);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_TRUE(CheckComplete(*written->checkpoint, written->config).ok());
  const auto generated = OpenModel(directory, LoadFormat::kDummy);
  ASSERT_TRUE(generated.ok()) << generated.status();
  for (const Checkpoint::Entry& entry : generated->checkpoint->entries()) {
    const Checkpoint::Entry* const found = written->checkpoint->Find(entry.name);
    ASSERT_NE(found, nullptr) << entry.name;
    std::vector<std::byte> expected(entry.view.size_bytes());
    ASSERT_TRUE(
        generated->checkpoint->Read({entry.view.data, entry.view.size_bytes()}, expected).ok());
    EXPECT_EQ(BytesOf(found->view), expected) << entry.name;
  }
}

TEST_F(SynthFiles, FusedExpertsHaveTheSameValues) {
  ASSERT_TRUE(Write(MakePlan({}), temp_.File("single")).ok());
  ASSERT_TRUE(Write(MakePlan({.fused = true}), temp_.File("fused")).ok());
  const auto single = OpenModel(temp_.File("single"), LoadFormat::kAuto);
  const auto fused = OpenModel(temp_.File("fused"), LoadFormat::kAuto);
  ASSERT_TRUE(single.ok() && fused.ok());
  ASSERT_TRUE(CheckComplete(*fused->checkpoint, fused->config).ok());
  for (int32_t layer = 0; layer < 4; ++layer) {
    for (const int32_t expert : {0, 7, 15}) {
      const auto a = GetExpertTensors(*single->checkpoint, single->config, layer, expert);
      const auto b = GetExpertTensors(*fused->checkpoint, fused->config, layer, expert);
      ASSERT_TRUE(a.ok() && b.ok());
      EXPECT_EQ(BytesOf(a->gate_proj.weight), BytesOf(b->gate_proj.weight));
      EXPECT_EQ(BytesOf(a->up_proj.weight), BytesOf(b->up_proj.weight));
      EXPECT_EQ(BytesOf(a->down_proj.weight), BytesOf(b->down_proj.weight));
    }
  }
}

TEST_F(SynthFiles, TheSameBytesWhateverTheThreadsAndOthersForAnotherSeed) {
  const SynthOptions options = {.format = SynthFormat::kNF4};
  SynthOptions seeded = options;
  seeded.seed = 1;
  ASSERT_TRUE(Write(MakePlan(options), temp_.File("a"), 1).ok());
  ASSERT_TRUE(Write(MakePlan(options), temp_.File("b"), 5).ok());
  ASSERT_TRUE(Write(MakePlan(seeded), temp_.File("c")).ok());
  const std::string a = test::ReadFile(temp_.File("a/model.safetensors"));
  EXPECT_EQ(a, test::ReadFile(temp_.File("b/model.safetensors")));
  EXPECT_NE(a, test::ReadFile(temp_.File("c/model.safetensors")));
}

TEST_F(SynthFiles, SizesOfTheFullModelAreThoseOfThePublishedOnes) {
  const auto config = MakeSynthConfig("qwen3-next-80b", {});
  ASSERT_TRUE(config.ok()) << config.status();
  const auto plan = PlanSynth(*config, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->tensors.size(), 74391u);                                   // checkpoint spec 1.2
  EXPECT_NEAR(static_cast<double>(plan->tensor_bytes) / 1e9, 159.35, 0.01);  // spec 9
}

TEST_F(SynthFiles, OddShapesAreWhole) {
  for (const SynthFormat format : kFormats) {
    SCOPED_TRACE(SynthFormatName(format));
    const SynthPlan plan = MakePlan({.format = format, .quantise_router = true, .num_files = 2},
                                    {"hidden_size=67", "moe_intermediate_size=33", "num_experts=5",
                                     "shared_expert_intermediate_size=131", "num_hidden_layers=5"});
    const std::string directory = temp_.File(std::string(SynthFormatName(format)));
    ASSERT_TRUE(Write(plan, directory).ok());
    const auto checkpoint = Checkpoint::Open(directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->entries().size(), plan.tensors.size());
  }
}

TEST_F(SynthFiles, ADirectoryThatHoldsSomethingIsLeftAlone) {
  std::filesystem::create_directory(temp_.File("there"));
  test::WriteFile(temp_.File("there/mine"), "x");
  const absl::Status status = Write(MakePlan({}), temp_.File("there"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is there already and not empty"));
  EXPECT_EQ(test::ReadFile(temp_.File("there/mine")), "x");
  std::filesystem::create_directory(temp_.File("new.partial"));
  test::WriteFile(temp_.File("new.partial/mine"), "x");
  EXPECT_THAT(std::string(Write(MakePlan({}), temp_.File("new")).message()),
              HasSubstr("not of an unfinished synth"));
  EXPECT_EQ(test::ReadFile(temp_.File("new.partial/mine")), "x");
}

TEST_F(SynthFiles, AStoppedRunLeavesNothing) {
  WorkerPool pool({.num_threads = 2});
  const SynthPlan plan = MakePlan({});
  int calls = 0;
  const absl::Status status = WriteSynth(plan, {}, temp_.File("out"), pool,
                                         [&](const SynthProgress&) { return ++calls < 3; });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path()));
}

// A process killed at every report: nothing that opens, and the next run is not hindered.
TEST_F(SynthFiles, AKilledRunLeavesNothingThatLoads) {
  const SynthPlan plan = MakePlan({.num_files = 3});
  for (const int kill_at : {1, 3, 6, 12, 18}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      WorkerPool pool({.num_threads = 1});
      int calls = 0;
      (void)WriteSynth(plan, {}, temp_.File("out"), pool, [&](const SynthProgress&) {
        if (++calls == kill_at) raise(SIGKILL);
        return true;
      });
      _exit(0);
    }
    int ended = 0;
    ASSERT_EQ(waitpid(child, &ended, 0), child);
    ASSERT_TRUE(WIFSIGNALED(ended)) << kill_at;
    EXPECT_FALSE(Checkpoint::Open(temp_.File("out")).ok());
    EXPECT_FALSE(Checkpoint::Open(temp_.File("out.partial")).ok());
  }
  ASSERT_TRUE(Write(plan, temp_.File("out")).ok());
  EXPECT_TRUE(Checkpoint::Open(temp_.File("out")).ok());
  EXPECT_FALSE(std::filesystem::exists(temp_.File("out.partial")));
}

TEST_F(SynthFiles, ADiskWithoutTheSpaceIsRefusedBeforehand) {
  const auto config = MakeSynthConfig("qwen3-next-80b", {"num_experts=16384"});
  ASSERT_TRUE(config.ok()) << config.status();
  const auto plan = PlanSynth(*config, {.num_files = 200});
  ASSERT_TRUE(plan.ok()) << plan.status();  // 5 TB
  const absl::Status status = Write(*plan, temp_.File("out"));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(fmt::format("needs {} bytes", plan->total_bytes)));
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path()));
}

TEST(SynthConfig, SaysWhatIsWrong) {
  EXPECT_THAT(std::string(MakeSynthConfig("nowhere", {}).status().message()),
              HasSubstr("'nowhere': neither a config.json, nor a directory with one, nor a "
                        "geometry (qwen3-next-80b, tiny)"));
  EXPECT_THAT(std::string(MakeSynthConfig("tiny", {"num_experts"}).status().message()),
              HasSubstr("'num_experts': expected KEY=VALUE"));
  EXPECT_THAT(std::string(MakeSynthConfig("tiny", {"num_experts=x"}).status().message()),
              HasSubstr("expected a value in JSON"));
  EXPECT_THAT(std::string(MakeSynthConfig("tiny", {"num_experts=0"}).status().message()),
              HasSubstr("num_experts"));
  const auto config = MakeSynthConfig("tiny", {});
  EXPECT_THAT(std::string(PlanSynth(*config, {.num_files = 9999}).status().message()),
              HasSubstr("9999 files for 250 tensors"));
}

}  // namespace
}  // namespace banyan
