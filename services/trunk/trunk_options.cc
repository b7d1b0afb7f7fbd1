#include "services/trunk/trunk_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string_view>
#include <utility>

#include "absl/strings/string_view.h"
#include "common/base/byte_size.h"
#include "common/base/command_line.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/version.h"
#include "common/plan/prefill_halves.h"
#include "common/plan/tensor_parallel.h"
#include "common/pool/pack_path.h"
#include "common/rpc/channel_settings.h"
#include "services/trunk/engine/step.h"
#ifdef BANYAN_CUDA
#include "services/trunk/ops/cuda/cuda_backend.h"
#endif

namespace banyan::trunk {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int32_t kMaxSequences = 4096;
constexpr int32_t kMaxBatchTokens = 65536;
constexpr int32_t kMaxQueuedRequests = 1 << 20;

// Flags as text, before they are checked.
struct Given {
  std::string cluster_config;
  std::string experts;
  std::string backend = "auto";
  std::string load_format = "auto";
  std::string trunk_format = "auto";
  std::string kv_format = "auto";
  std::string expert_activations = "auto";
  std::string expert_transport = "auto";
  std::string prefill_halves = "auto";
  std::string prompt_experts = "auto";
  std::string host_budget = "0";
  std::string vram_budget = "0";
  std::string expert_wait = "10s";
  std::string drain_timeout = "30s";
  std::string slow_client_timeout = "30s";
};

void Declare(CLI::App& app, TrunkOptions& options, Given& given) {
  app.add_option("--model", options.model_dir, "Checkpoint directory")
      ->required()
      ->type_name("DIR");
  app.add_option("--listen", options.listen, "host:port or unix:/path")->capture_default_str();
  app.add_option("--metrics_listen", options.metrics_listen,
                 "host:port of the Prometheus metrics; empty: none")
      ->capture_default_str();
  app.add_option("--cluster_config", given.cluster_config,
                 "JSON file with the replicas of every expert shard")
      ->type_name("FILE");
  app.add_option("--experts", given.experts,
                 "Instead: addresses of the expert shards 0, 1, ... in order, one replica each, "
                 "separated by commas");
  app.add_option("--backend", given.backend, "auto (cuda where there is a GPU), cuda or cpu")
      ->capture_default_str();
  app.add_option(
         "--load_format", given.load_format,
         "auto (the checkpoint's files) or dummy (generated weights, of which only config.json "
         "is needed); the same as the experts'")
      ->capture_default_str();
  app.add_option("--tensor_parallel", options.tensor_parallel, kTensorParallelHelp)
      ->capture_default_str();
  app.add_option("--trunk_format", given.trunk_format, kTrunkFormatHelp)->capture_default_str();
  app.add_option(
         "--pool_dir", options.pool_dir,
         "Where the pack of converted matrices is kept, beside the experts' (default: as in "
         "banyan-expert); empty: they are converted in memory at each start")
      ->type_name("DIR");
  app.add_flag("--verify_pool", options.verify_pool,
               "Compare the checksums of a pack that is there before serving it; a damaged one is "
               "packed again");
  app.add_option("--kv_format", given.kv_format, kKvFormatHelp)->capture_default_str();
  app.add_option("--expert_activations", given.expert_activations, kExpertActivationsHelp)
      ->capture_default_str();
  app.add_option(
         "--expert_transport", given.expert_transport,
         "auto (shared memory where an expert at a unix: address can open it, else gRPC) or "
         "grpc")
      ->capture_default_str();
  app.add_option("--max_context_tokens", options.max_context_tokens,
                 "Prompt and answer of one request; 0: what model and memory allow")
      ->capture_default_str();
  app.add_option("--max_sequences", options.max_sequences,
                 "Requests that run at the same time; 0: 32, or fewer where memory is short")
      ->capture_default_str();
  app.add_option("--max_batch_tokens", options.max_batch_tokens, kMaxBatchTokensHelp)
      ->capture_default_str();
  app.add_option("--prefill_halves", given.prefill_halves, kPrefillHalvesHelp)
      ->capture_default_str();
  app.add_option("--prompt_experts", given.prompt_experts, kPromptExpertsHelp)
      ->capture_default_str();
  app.add_option("--long_prompt_tokens", options.long_prompt_tokens,
                 "From so many tokens on a prompt is long: --prompt_experts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--max_queued_requests", options.max_queued_requests,
                 "Requests that may wait; more are refused with RESOURCE_EXHAUSTED")
      ->capture_default_str();
  app.add_option("--host_budget", given.host_budget,
                 "Host memory to use, such as 8GiB; 0: three quarters of what is available")
      ->capture_default_str();
  app.add_option(
         "--vram_budget", given.vram_budget,
         "Memory of each GPU to use beside the CUDA context, such as 6GiB; 0: nine tenths of what "
         "is free")
      ->capture_default_str();
  app.add_option("--threads", options.num_threads, "Compute threads; 0: one per usable CPU")
      ->capture_default_str();
  app.add_option("--cpu_tier", options.cpu_tier, "CPU kernels: auto, scalar, avx2, avx512 or amx")
      ->capture_default_str();
  app.add_option("--expert_wait", given.expert_wait,
                 "How long requests wait for a lost expert shard before they fail")
      ->capture_default_str();
  app.add_option("--drain_timeout", given.drain_timeout,
                 "How long requests may run on after SIGTERM")
      ->capture_default_str();
  app.add_option("--slow_client_timeout", given.slow_client_timeout,
                 "A client that reads nothing for so long is ended")
      ->capture_default_str();
  app.add_flag("--insecure_listen", options.insecure_listen,
               "Allow an address that other machines reach, without TLS");
  app.add_option("--log_level", options.log_level,
                 "debug, info, warning or error; SIGUSR1 makes a running process one step more "
                 "verbose, SIGUSR2 one less")
      ->capture_default_str();
  app.add_option("--log_format", options.log_format, "key_value or json: one object a line")
      ->capture_default_str();
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view flag, const std::string& text,
                                             bool may_be_zero) {
  absl::Duration value;
  if (!absl::ParseDuration(ToAbsl(text), &value) || value < absl::ZeroDuration() ||
      (!may_be_zero && value == absl::ZeroDuration()) || value > absl::Hours(24)) {
    return InvalidArgumentF("{} '{}': expected a time such as 30s, 500ms or 2m, {}at most 24h",
                            flag, Printable(text, 40), may_be_zero ? "" : "above 0 and ");
  }
  return value;
}

#ifdef BANYAN_CUDA
constexpr bool kBuiltWithCuda = true;
bool HasGpu() { return CudaDevicePresent(); }
#else
constexpr bool kBuiltWithCuda = false;
bool HasGpu() { return false; }
#endif

absl::Status CheckBackend(const std::string& backend) {
  if (backend == "cuda" && !kBuiltWithCuda) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "--backend cuda: this binary was built without CUDA; use auto or cpu");
  }
  if (backend != "auto" && backend != "cpu" && backend != "cuda") {
    return InvalidArgumentF("--backend '{}': expected auto, cuda or cpu", Printable(backend));
  }
  return absl::OkStatus();
}

absl::StatusOr<ClusterConfig> Cluster(const Given& given) {
  if (given.cluster_config.empty() == given.experts.empty()) {
    return InvalidArgumentF(
        "{}: say where the expert shards are, for instance --experts 127.0.0.1:50061, or "
        "--cluster_config FILE",
        given.experts.empty() ? "neither --experts nor --cluster_config given"
                              : "both --experts and --cluster_config given");
  }
  if (!given.cluster_config.empty()) return LoadClusterConfig(given.cluster_config);
  ClusterConfig cluster;
  std::string_view rest = given.experts;
  while (true) {
    const size_t comma = rest.find(',');
    const std::string_view address = rest.substr(0, comma);
    // The port and the form of an address; where it is does not matter here.
    RETURN_IF_ERROR(Annotate(CheckListenAddress(address, /*insecure_listen=*/true), "--experts"));
    for (const ClusterConfig::Shard& shard : cluster.shards) {
      if (shard.replicas[0] == address) {
        return InvalidArgumentF("--experts: '{}' is named twice", Printable(address));
      }
    }
    cluster.shards.push_back({{std::string(address)}});
    if (comma == std::string_view::npos) return cluster;
    rest.remove_prefix(comma + 1);
  }
}

absl::Status CheckRange(std::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgumentF("{} {}: expected {} to {}", flag, value, low, high);
}

absl::Status Check(const TrunkOptions& options) {
  RETURN_IF_ERROR(CheckRange("--max_context_tokens", options.max_context_tokens, 0, 1 << 24));
  RETURN_IF_ERROR(CheckRange("--max_sequences", options.max_sequences, 0, kMaxSequences));
  // A step has room for a piece of a prompt beside all decoding sequences.
  if (options.max_batch_tokens != 0) {
    RETURN_IF_ERROR(CheckRange("--max_batch_tokens", options.max_batch_tokens,
                               std::max(options.max_sequences, 1) + kDeltaNetChunkTokens - 1,
                               kMaxBatchTokens));
  }
  RETURN_IF_ERROR(
      CheckRange("--max_queued_requests", options.max_queued_requests, 1, kMaxQueuedRequests));
  RETURN_IF_ERROR(CheckRange("--threads", options.num_threads, 0, kMaxThreads));
  RETURN_IF_ERROR(CheckTensorParallelSize(options.tensor_parallel));
  if (std::string_view tiers[] = {"auto", "scalar", "avx2", "avx512", "amx"};
      std::find(std::begin(tiers), std::end(tiers), options.cpu_tier) == std::end(tiers)) {
    return InvalidArgumentF("--cpu_tier '{}': expected auto, scalar, avx2, avx512 or amx",
                            Printable(options.cpu_tier));
  }
  return Annotate(CheckListenAddress(options.listen, options.insecure_listen), "--listen");
}

}  // namespace

absl::StatusOr<std::optional<TrunkOptions>> ParseTrunkOptions(int argc, const char* const* argv) {
  TrunkOptions options;
  options.pool_dir = DefaultPoolDir();
  Given given;
  CLI::App app("Serves a model: runs everything but the routed experts, which expert hosts run.");
  app.name("banyan-trunk");
  app.set_version_flag("--version", fmt::format("banyan-trunk {}", Version()));
  Declare(app, options, given);
  try {
    app.parse(CommandLineArguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      app.exit(error);  // prints the help or the version
      return std::nullopt;
    }
    return InvalidArgumentF("{} (see banyan-trunk --help)", error.what());
  }

  RETURN_IF_ERROR(CheckBackend(given.backend));
  const absl::StatusOr<LoadFormat> load_format = ParseLoadFormat(given.load_format);
  if (!load_format.ok()) return Annotate(load_format.status(), "--load_format");
  options.load_format = *load_format;
  RETURN_IF_ERROR(Check(options));
  ASSIGN_OR_RETURN(options.cluster, Cluster(given));
  const absl::StatusOr<uint64_t> budget = ParseByteSize(given.host_budget);
  if (!budget.ok()) return Annotate(budget.status(), "--host_budget");
  options.host_budget_bytes = *budget;
  const absl::StatusOr<uint64_t> vram_budget = ParseByteSize(given.vram_budget);
  if (!vram_budget.ok()) return Annotate(vram_budget.status(), "--vram_budget");
  options.vram_budget_bytes = *vram_budget;
  options.use_cuda = given.backend == "cuda" || (given.backend == "auto" && HasGpu());
  ASSIGN_OR_RETURN(options.trunk_format, ParseTrunkFormat(given.trunk_format));
  ASSIGN_OR_RETURN(options.kv_dtype, ParseKvFormat(given.kv_format, options.use_cuda));
  ASSIGN_OR_RETURN(options.expert_activations,
                   ParseExpertActivations(given.expert_activations, options.use_cuda));
  if (given.expert_transport != "auto" && given.expert_transport != "grpc") {
    return InvalidArgumentF("--expert_transport '{}': expected auto or grpc",
                            Printable(given.expert_transport));
  }
  options.expert_shared_memory = given.expert_transport == "auto";
  const bool in_memory = options.expert_shared_memory && AllOnUnixSockets(options.cluster);
  ASSIGN_OR_RETURN(const PromptSteps steps,
                   ParsePromptSteps(given.prefill_halves, given.prompt_experts,
                                    {.on_gpu = options.use_cuda,
                                     .tensor_parallel = options.tensor_parallel,
                                     .in_memory = in_memory,
                                     .bf16_rows = options.expert_activations == DType::kBF16}));
  options.halved_rows = steps.halved_rows;
  options.prompt_experts = steps.experts;
  ASSIGN_OR_RETURN(options.expert_wait, ParseDuration("--expert_wait", given.expert_wait, true));
  ASSIGN_OR_RETURN(options.drain_timeout,
                   ParseDuration("--drain_timeout", given.drain_timeout, true));
  ASSIGN_OR_RETURN(options.slow_client_timeout,
                   ParseDuration("--slow_client_timeout", given.slow_client_timeout, false));
  RETURN_IF_ERROR(Annotate(SetLogLevel(options.log_level), "--log_level"));
  RETURN_IF_ERROR(Annotate(SetLogFormat(options.log_format), "--log_format"));
  return options;
}

}  // namespace banyan::trunk
