#include "services/trunk/trunk_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/strings.h"
#include "common/plan/prefill_halves.h"

namespace banyan::trunk {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<TrunkOptions> Parse(std::vector<const char*> args) {
  args.insert(args.begin(), "banyan-trunk");
  auto options = ParseTrunkOptions(static_cast<int>(args.size()), args.data());
  if (!options.ok()) return options.status();
  return options->value();
}

// With a model and an expert, which everything else needs.
std::string Error(const std::string& flag) {
  return std::string(
      Parse({"--model=m", "--experts=127.0.0.1:1", flag.c_str()}).status().message());
}

TEST(TrunkOptionsTest, DefaultsAndShorthandForExperts) {
  const auto options = Parse({"--model=m", "--experts=unix:/a,10.0.0.7:50061",
                              "--metrics_listen=", "--host_budget=1.5GiB", "--expert_wait=250ms",
                              "--slow_client_timeout", "2m"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->listen, "127.0.0.1:50051");
  EXPECT_EQ(options->metrics_listen, "");
  ASSERT_EQ(options->cluster.shards.size(), 2u);
  EXPECT_EQ(options->cluster.shards[1].replicas[0], "10.0.0.7:50061");
  EXPECT_EQ(options->host_budget_bytes, uint64_t{3} << 29);
  EXPECT_EQ(options->expert_wait, absl::Milliseconds(250));
  EXPECT_EQ(options->slow_client_timeout, absl::Minutes(2));
  EXPECT_EQ(options->drain_timeout, absl::Seconds(30));
}

// What a trunk in f32 sends stays f32 unless it is told otherwise.
TEST(TrunkOptionsTest, RowsToTheExperts) {
  const auto of = [](const char* value) {
    const auto options =
        Parse({"--model=m", "--experts=a:1", "--backend=cpu", "--expert_activations", value});
    EXPECT_TRUE(options.ok()) << options.status();
    return options->expert_activations;
  };
  EXPECT_EQ(of("auto"), DType::kF32);
  EXPECT_EQ(of("f32"), DType::kF32);
  EXPECT_EQ(of("bf16"), DType::kBF16);
  EXPECT_EQ(ParseExpertActivations("auto", /*on_gpu=*/true).value(), DType::kBF16);
  EXPECT_EQ(ParseExpertActivations("f32", /*on_gpu=*/true).value(), DType::kF32);
}

TEST(TrunkOptionsTest, TransportToTheExperts) {
  const auto of = [](const char* value) {
    const auto options =
        Parse({"--model=m", "--experts=a:1", "--backend=cpu", "--expert_transport", value});
    EXPECT_TRUE(options.ok()) << options.status();
    return options->expert_shared_memory;
  };
  EXPECT_TRUE(of("auto"));
  EXPECT_FALSE(of("grpc"));
}

TEST(TrunkOptionsTest, PrefillHalves) {
  const auto of = [](const char* value) {
    const auto options =
        Parse({"--model=m", "--experts=a:1", "--backend=cpu", "--prefill_halves", value});
    EXPECT_TRUE(options.ok()) << options.status();
    return options->halved_rows;
  };
  EXPECT_EQ(of("auto"), 0);
  EXPECT_EQ(of("off"), 0);
  EXPECT_EQ(of("2"), 2);
  EXPECT_EQ(of("65536"), 65536);
  const auto on_gpu = [](const char* value, bool in_memory) {
    return ParsePrefillHalves(value, /*on_gpu=*/true, in_memory).value();
  };
  EXPECT_EQ(on_gpu("auto", /*in_memory=*/false), kLeastHalvedRows);
  EXPECT_EQ(on_gpu("auto", /*in_memory=*/true), kLeastHalvedRowsInMemory);
  EXPECT_EQ(on_gpu("off", /*in_memory=*/true), 0);
  EXPECT_EQ(ParsePrefillHalves("auto", /*on_gpu=*/false, /*in_memory=*/true).value(), 0);
}

// On a CPU, with experts that share its memory and get bf16, unless told otherwise.
absl::StatusOr<TrunkOptions> ParsePrompt(std::vector<const char*> more) {
  std::vector<const char*> args = {"--model=m", "--backend=cpu", "--expert_activations=bf16",
                                   "--experts=unix:/a,unix:/b"};
  for (const char* arg : more) {
    const std::string flag = std::string(arg).substr(0, std::string(arg).find('='));
    std::erase_if(args,
                  [&](const char* old) { return std::string(old).rfind(flag + "=", 0) == 0; });
  }
  args.insert(args.end(), more.begin(), more.end());
  return Parse(args);
}

TEST(TrunkOptionsTest, PromptExperts) {
  const auto of = [](const char* value) {
    const auto options = ParsePrompt({"--prompt_experts", value});
    EXPECT_TRUE(options.ok()) << options.status();
    return options->prompt_experts;
  };
  EXPECT_FALSE(of("auto").any());
  EXPECT_FALSE(of("off").any());
  EXPECT_EQ(of("50").percent, 50);
  EXPECT_EQ(of("100").percent, 100);
  EXPECT_FALSE(of("50").chosen);
  EXPECT_EQ(ParsePrompt({})->long_prompt_tokens, 512);
  EXPECT_FALSE(ParsePrompt({})->prompt_experts.any());
  EXPECT_EQ(ParsePrompt({"--long_prompt_tokens=1"})->long_prompt_tokens, 1);
}

// Experts of our own and halves are two ways to the same end: who asks for both is told, and halves
// that are only our choice give way.
TEST(TrunkOptionsTest, PromptExpertsAndHalves) {
  for (const char* halves : {"--prefill_halves=auto", "--prefill_halves=off"}) {
    const auto options = ParsePrompt({"--prompt_experts=50", halves});
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ(options->halved_rows, 0);
    EXPECT_EQ(options->prompt_experts.percent, 50);
  }
  for (const char* none : {"--prompt_experts=off", "--prompt_experts=auto"}) {
    EXPECT_EQ(ParsePrompt({none, "--prefill_halves=100"})->halved_rows, 100);
  }
  EXPECT_THAT(
      std::string(ParsePrompt({"--prompt_experts=50", "--prefill_halves=100"}).status().message()),
      HasSubstr("--prompt_experts 50: not with steps that run as halves"));
}

// What auto takes as a reason for none is an error for a number.
TEST(TrunkOptionsTest, PromptExpertsNeedWhatTheyNeed) {
  const char* const kCases[][2] = {
      {"--tensor_parallel=2", "not with --tensor_parallel 2"},
      {"--expert_activations=f32", "not with --expert_activations f32"},
      {"--expert_activations=auto", "not with --expert_activations f32"},
      {"--expert_transport=grpc", "every expert must be at a unix: address"},
      {"--experts=unix:/a,127.0.0.1:1", "every expert must be at a unix: address"}};
  for (const auto& [flag, words] : kCases) {
    const absl::Status status = ParsePrompt({"--prompt_experts=50", flag}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << flag;
    EXPECT_EQ(status.message().find("--prompt_experts 50: "), 0u) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    for (const char* none : {"--prompt_experts=auto", "--prompt_experts=off"}) {
      const auto options = ParsePrompt({none, flag});
      ASSERT_TRUE(options.ok()) << options.status();
      EXPECT_FALSE(options->prompt_experts.any()) << flag;
    }
  }
}

TEST(TrunkOptionsTest, SaysWhatIsWrongWithWhichFlag) {
#ifndef BANYAN_CUDA
  EXPECT_THAT(Error("--backend=cuda"), HasSubstr("built without CUDA"));
#endif
  EXPECT_THAT(Error("--vram_budget=much"), HasSubstr("--vram_budget"));
  EXPECT_THAT(Error("--trunk_format=fp8"), HasSubstr("--trunk_format 'fp8'"));
  EXPECT_THAT(Error("--kv_format=fp8"), HasSubstr("--kv_format 'fp8'"));
  EXPECT_THAT(Error("--expert_activations=f16"),
              HasSubstr("--expert_activations 'f16': expected auto, f32 or bf16"));
  EXPECT_THAT(Error("--expert_transport=shm"),
              HasSubstr("--expert_transport 'shm': expected auto or grpc"));
  for (const char* value : {"1", "0", "-5", "65537", "on", "", "12x"}) {
    EXPECT_THAT(Error(std::string("--prefill_halves=") + value),
                HasSubstr(std::string("--prefill_halves '") + value +
                          "': expected auto, off or 2 to 65536 rows"));
  }
  for (const char* value : {"0", "101", "-1", "half", "", "50%"}) {
    EXPECT_THAT(Error(std::string("--prompt_experts=") + value),
                HasSubstr(std::string("--prompt_experts '") + value +
                          "': expected auto, off or 1 to 100 percent"));
  }
  for (const char* value : {"0", "-1", "many"}) {
    EXPECT_THAT(Error(std::string("--long_prompt_tokens=") + value),
                HasSubstr("--long_prompt_tokens"));
  }
  EXPECT_THAT(Error("--tensor_parallel=3"), HasSubstr("--tensor_parallel 3: expected 1, 2, 4"));
  EXPECT_THAT(Error("--backend=tpu"), HasSubstr("--backend 'tpu': expected auto, cuda or cpu"));
  EXPECT_THAT(Error("--load_format=gguf"), HasSubstr("expected auto or dummy"));
  EXPECT_THAT(Error("--max_sequences=-1"), HasSubstr("--max_sequences -1: expected 0 to 4096"));
  EXPECT_THAT(Error("--max_batch_tokens=63"),
              HasSubstr("--max_batch_tokens 63: expected 64 to 65536"));
  EXPECT_THAT(std::string(Parse({"--model=m", "--experts=a:1", "--max_sequences=32",
                                 "--max_batch_tokens=94"})
                              .status()
                              .message()),
              HasSubstr("--max_batch_tokens 94: expected 95 to 65536"));
  EXPECT_THAT(Error("--max_queued_requests=0"), HasSubstr("--max_queued_requests 0"));
  EXPECT_THAT(Error("--max_context_tokens=-1"), HasSubstr("--max_context_tokens -1"));
  EXPECT_THAT(Error("--host_budget=lots"), HasSubstr("--host_budget: size 'lots'"));
  EXPECT_THAT(Error("--drain_timeout=-3s"), HasSubstr("--drain_timeout '-3s'"));
  EXPECT_THAT(Error("--slow_client_timeout=0s"), HasSubstr("above 0"));
  EXPECT_THAT(Error("--listen=0.0.0.0:50051"), HasSubstr("--insecure_listen"));
  EXPECT_THAT(Error("--listen=nowhere"), HasSubstr("--listen"));
  EXPECT_THAT(Error("--log_level=loud"), HasSubstr("--log_level"));
  EXPECT_THAT(Error("--log_format=xml"), HasSubstr("--log_format: log format 'xml'"));
  EXPECT_THAT(Error("--cpu_tier=sse"), HasSubstr("--cpu_tier 'sse'"));
  EXPECT_THAT(Error("--no_such_flag=1"), HasSubstr("banyan-trunk --help"));
  EXPECT_THAT(Error("--cluster_config=x.json"), HasSubstr("both --experts and --cluster_config"));
  EXPECT_THAT(std::string(Parse({"--model=m"}).status().message()),
              HasSubstr("neither --experts nor --cluster_config"));
  EXPECT_THAT(std::string(Parse({"--model=m", "--experts=a:1,a:1"}).status().message()),
              HasSubstr("'a:1' is named twice"));
  EXPECT_THAT(std::string(Parse({"--model=m", "--experts=a:1,"}).status().message()),
              HasSubstr("--experts"));
}

}  // namespace
}  // namespace banyan::trunk
