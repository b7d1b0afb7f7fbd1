// `banyan plan`: what a model takes and where it goes, before anything is loaded.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "common/base/byte_size.h"
#include "common/base/strings.h"
#include "common/io/mapping_fault.h"
#include "common/parallel/topology.h"
#include "common/plan/prefill_halves.h"
#include "common/plan/prompt_experts.h"
#include "common/plan/tensor_parallel.h"
#include "common/plan/trunk_format.h"
#include "services/client/commands/command.h"
#include "services/client/plan/cluster_plan.h"
#include "services/client/plan/plan_text.h"

namespace banyan::client {
namespace {

struct Options {
  ClusterPlanOptions plan;
  std::string load_format = "auto";
  std::string split = "width";
  std::string pool_memory = "map";
  std::string trunk_format = "auto";
  std::string kv_format = "auto";
  std::string expert_activations = "auto";
  std::string prefill_halves = "auto";
  std::string prompt_experts = "auto";
  std::string vram_budget = "0";
  std::string host_budget = "0";
  double bandwidth_gb = 0;
  std::string output = "text";
};

int Run(const Options& given) {
  NameMappingFaults();
  ClusterPlanOptions options = given.plan;
  const auto usage = [](const char* flag, const absl::Status& status) {
    return FailUsage(fmt::format("{}: {}", flag, ToStd(status.message())));
  };
  const absl::StatusOr<LoadFormat> load_format = ParseLoadFormat(given.load_format);
  if (!load_format.ok()) return usage("--load_format", load_format.status());
  const absl::StatusOr<ShardSplit> split = ParseShardSplit(given.split);
  if (!split.ok()) return usage("--split", split.status());
  const absl::StatusOr<PoolMemoryMode> memory = ParsePoolMemory(given.pool_memory);
  if (!memory.ok()) return usage("--pool_memory", memory.status());
  const absl::StatusOr<uint64_t> vram = ParseByteSize(given.vram_budget);
  if (!vram.ok()) return usage("--vram_budget", vram.status());
  const absl::StatusOr<uint64_t> host = ParseByteSize(given.host_budget);
  if (!host.ok()) return usage("--host_budget", host.status());
  const auto trunk_format = ParseTrunkFormat(given.trunk_format);
  if (!trunk_format.ok()) return FailUsage(ToStd(trunk_format.status().message()));
  const auto kv_format = ParseKvFormat(given.kv_format, *vram > 0);
  if (!kv_format.ok()) return FailUsage(ToStd(kv_format.status().message()));
  const auto expert_activations = ParseExpertActivations(given.expert_activations, *vram > 0);
  if (!expert_activations.ok()) return FailUsage(ToStd(expert_activations.status().message()));
  const auto steps = ParsePromptSteps(given.prefill_halves, given.prompt_experts,
                                      {.on_gpu = *vram > 0,
                                       .tensor_parallel = options.tensor_parallel,
                                       .in_memory = true,
                                       .bf16_rows = *expert_activations == DType::kBF16});
  if (!steps.ok()) return FailUsage(ToStd(steps.status().message()));
  options.halved_rows = steps->halved_rows;
  options.prompt_experts = steps->experts;
  options.trunk_format = *trunk_format;
  options.kv_dtype = *kv_format;
  options.expert_activations = *expert_activations;
  options.load_format = *load_format;
  options.split = *split;
  options.pool_memory = *memory;
  options.on_gpu = *vram > 0;
  options.vram_budget_bytes = *vram;
  options.host_budget_bytes = *host;
  if (options.num_threads == 0) options.num_threads = UsableCpuCount();

  const absl::StatusOr<ClusterPlan> plan = PlanCluster(options);
  if (!plan.ok()) return Fail(plan.status());
  Bandwidth bandwidth{given.bandwidth_gb * 1e9, "--bandwidth"};
  if (given.bandwidth_gb == 0) {
    bandwidth.bytes_per_second = MeasureHostBandwidth(options.num_threads);
    bandwidth.source = fmt::format("measured here with {} thread(s)", options.num_threads);
  }
  if (given.output == "json") {
    std::printf("%s\n", PlanJson(*plan, bandwidth)
                            .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                            .c_str());
  } else {
    std::fputs(PlanText(*plan, bandwidth).c_str(), stdout);
  }
  return kExitOk;
}

}  // namespace

void AddPlan(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  options->plan.num_threads = 0;
  CLI::App* verb =
      app.add_subcommand("plan", "Say what a model takes and where it goes, without loading it");
  verb->add_option("--model", options->plan.model_dir, "Checkpoint directory")
      ->required()
      ->type_name("DIR");
  verb->add_option("--load_format", options->load_format, "auto or dummy, as in banyan-trunk")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  verb->add_option("--vram_budget", options->vram_budget,
                   "GPU memory for the trunk beside the CUDA context, such as 8GiB, of each GPU; "
                   "0: the trunk computes in host memory")
      ->capture_default_str();
  verb->add_option(
          "--host_budget", options->host_budget,
          "Host memory for all services of one machine, such as 110GiB; 0: what each takes "
          "by default on this one")
      ->capture_default_str();
  verb->add_option("--tensor_parallel", options->plan.tensor_parallel, kTensorParallelHelp)
      ->check(CLI::IsMember({1, 2, 4, 8}))
      ->capture_default_str();
  verb->add_option("--trunk_format", options->trunk_format, kTrunkFormatHelp)
      ->capture_default_str();
  verb->add_option("--kv_format", options->kv_format, kKvFormatHelp)->capture_default_str();
  verb->add_option("--expert_activations", options->expert_activations, kExpertActivationsHelp)
      ->capture_default_str();
  verb->add_option("--max_context_tokens", options->plan.max_context_tokens,
                   "Prompt and answer of one request; 0: what model and memory allow")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--max_sequences", options->plan.max_sequences,
                   "Requests that run at the same time; 0: 32, or fewer where memory is short")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  verb->add_option("--max_batch_tokens", options->plan.max_batch_tokens, kMaxBatchTokensHelp)
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  verb->add_option("--prefill_halves", options->prefill_halves, kPrefillHalvesHelp)
      ->capture_default_str();
  verb->add_option("--prompt_experts", options->prompt_experts, kPromptExpertsHelp)
      ->capture_default_str();
  verb->add_option("--shards", options->plan.num_shards, "Expert services")
      ->check(CLI::Range(1, static_cast<int>(kMaxShards)))
      ->capture_default_str();
  verb->add_option("--split", options->split, "width or experts, as in banyan-expert")
      ->check(CLI::IsMember({"width", "experts"}))
      ->capture_default_str();
  verb->add_option("--pool_format", options->plan.pool_format, "As in banyan-expert")
      ->check(CLI::IsMember({"auto", "bf16", "int8", "nf4", "int4"}))
      ->capture_default_str();
  verb->add_option("--pool_memory", options->pool_memory, "map, shm or anonymous")
      ->check(CLI::IsMember({"map", "shm", "anonymous"}))
      ->capture_default_str();
  verb->add_option("--threads", options->plan.num_threads,
                   "Compute threads of the trunk; 0: one per usable CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  verb->add_option("--bandwidth", options->bandwidth_gb,
                   "GB/s that host memory is read at, for the roof of tokens/s; 0: measured here")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
