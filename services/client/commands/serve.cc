// `banyan serve`: a trunk and its experts on this machine, supervised.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/byte_size.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/mapping_fault.h"
#include "common/parallel/topology.h"
#include "common/plan/prompt_experts.h"
#include "common/plan/tensor_parallel.h"
#include "services/client/commands/command.h"
#include "services/client/connection/server_connection.h"
#include "services/client/plan/cluster_plan.h"
#include "services/client/plan/plan_text.h"
#include "services/client/supervisor/run_directory.h"
#include "services/client/supervisor/supervisor.h"
#include "services/client/supervisor/thread_shares.h"

namespace banyan::client {
namespace {

constexpr int kFirstExpertMetricsOffset = 10;  // trunk 9101, experts 9111 + i
constexpr int kMaxShards = 8;
// The services end the answers under way at the drain limit themselves, then need a moment.
constexpr absl::Duration kKillGrace = absl::Seconds(5);

struct Options {
  std::string model;
  int32_t shards = 2;
  std::string split = "width";
  std::string listen = kDefaultServer;
  std::string metrics_listen = "127.0.0.1:9101";
  std::string log_file = "server.log";
  std::string log_level = "info";
  std::string log_format = "key_value";
  std::string run_dir;
  int32_t threads = 0;
  double drain_timeout_seconds = 20;
  // Handed on as they are.
  std::vector<std::pair<const char*, std::optional<std::string>>> to_trunk = {
      {"--backend", {}},          {"--max_context_tokens", {}},  {"--max_sequences", {}},
      {"--max_batch_tokens", {}}, {"--max_queued_requests", {}}, {"--host_budget", {}},
      {"--vram_budget", {}},      {"--trunk_format", {}},        {"--kv_format", {}},
      {"--tensor_parallel", {}},  {"--expert_activations", {}},  {"--expert_transport", {}},
      {"--prefill_halves", {}},   {"--prompt_experts", {}}};
  std::vector<std::pair<const char*, std::optional<std::string>>> to_both = {
      {"--cpu_tier", {}}, {"--load_format", {}}, {"--pool_dir", {}}};
  std::vector<std::pair<const char*, std::optional<std::string>>> to_experts = {
      {"--pool_format", {}}, {"--pool_memory", {}}};
  bool insecure_listen = false;
  std::vector<std::string> trunk_options;
  std::vector<uint64_t> expert_budgets;  // of --host_budget; none: not given
};

// "127.0.0.1:9101" and 11 gives "127.0.0.1:9112"; port 0 and "" (no metrics) stay.
absl::StatusOr<std::string> ShiftPort(const std::string& address, int by) {
  if (address.empty()) return address;
  const size_t colon = address.rfind(':');
  char* end = nullptr;
  const long port =
      colon == std::string::npos ? -1 : std::strtol(address.c_str() + colon + 1, &end, 10);
  if (port < 0 || *end != '\0' || end == address.c_str() + colon + 1 || port + by > 65535) {
    return InvalidArgumentF("--metrics_listen '{}': expected host:port", Printable(address));
  }
  return port == 0 ? address : fmt::format("{}:{}", address.substr(0, colon), port + by);
}

void Append(std::vector<std::string>& argv,
            const std::vector<std::pair<const char*, std::optional<std::string>>>& flags) {
  for (const auto& [name, value] : flags) {
    if (value) argv.insert(argv.end(), {name, *value});
  }
}

std::string ProgramDirectory() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

const std::optional<std::string>* Find(
    const std::vector<std::pair<const char*, std::optional<std::string>>>& flags,
    std::string_view name) {
  for (const auto& [flag, value] : flags) {
    if (flag == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<uint64_t> BudgetOf(const Options& options, const char* flag) {
  absl::StatusOr<uint64_t> bytes = ParseByteSize(Find(options.to_trunk, flag)->value_or("0"));
  if (!bytes.ok()) return Annotate(bytes.status(), flag);
  return bytes;
}

absl::StatusOr<int32_t> CountOf(const Options& options, const char* flag) {
  const std::string& text = Find(options.to_trunk, flag)->value_or("0");
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    return InvalidArgumentF("{} '{}': expected a number, 0 or more", flag, Printable(text));
  }
  return value;
}

bool IsTrunkOnGpu(const Options& options) {
  const std::string backend = Find(options.to_trunk, "--backend")->value_or("auto");
  return backend == "cuda" || (backend == "auto" && access("/dev/nvidiactl", F_OK) == 0);
}

// What the services will plan themselves. The trunk takes a GPU that is there, and only it knows
// how much of that is free: nullopt then, unless --vram_budget says it.
absl::StatusOr<std::optional<ClusterPlanOptions>> PlanOptions(const Options& options) {
  ClusterPlanOptions out;
  out.model_dir = options.model;
  out.num_shards = options.shards;
  ASSIGN_OR_RETURN(out.split, ParseShardSplit(options.split));
  ASSIGN_OR_RETURN(out.load_format,
                   ParseLoadFormat(Find(options.to_both, "--load_format")->value_or("auto")));
  out.pool_format = Find(options.to_experts, "--pool_format")->value_or("auto");
  ASSIGN_OR_RETURN(out.pool_memory,
                   ParsePoolMemory(Find(options.to_experts, "--pool_memory")->value_or("map")));
  ASSIGN_OR_RETURN(out.host_budget_bytes, BudgetOf(options, "--host_budget"));
  ASSIGN_OR_RETURN(out.vram_budget_bytes, BudgetOf(options, "--vram_budget"));
  ASSIGN_OR_RETURN(out.max_context_tokens, CountOf(options, "--max_context_tokens"));
  ASSIGN_OR_RETURN(out.max_sequences, CountOf(options, "--max_sequences"));
  ASSIGN_OR_RETURN(out.max_batch_tokens, CountOf(options, "--max_batch_tokens"));
  if (Find(options.to_trunk, "--tensor_parallel")->has_value()) {
    ASSIGN_OR_RETURN(out.tensor_parallel, CountOf(options, "--tensor_parallel"));
    RETURN_IF_ERROR(CheckTensorParallelSize(out.tensor_parallel));
  }
  out.on_gpu = IsTrunkOnGpu(options);
  if (out.on_gpu && out.vram_budget_bytes == 0) return std::optional<ClusterPlanOptions>();
  ASSIGN_OR_RETURN(out.trunk_format,
                   ParseTrunkFormat(Find(options.to_trunk, "--trunk_format")->value_or("auto")));
  ASSIGN_OR_RETURN(
      out.kv_dtype,
      ParseKvFormat(Find(options.to_trunk, "--kv_format")->value_or("auto"), out.on_gpu));
  ASSIGN_OR_RETURN(
      out.expert_activations,
      ParseExpertActivations(Find(options.to_trunk, "--expert_activations")->value_or("auto"),
                             out.on_gpu));
  const bool in_memory = Find(options.to_trunk, "--expert_transport")->value_or("auto") == "auto";
  ASSIGN_OR_RETURN(const PromptSteps steps,
                   ParsePromptSteps(Find(options.to_trunk, "--prefill_halves")->value_or("auto"),
                                    Find(options.to_trunk, "--prompt_experts")->value_or("auto"),
                                    {.on_gpu = out.on_gpu,
                                     .tensor_parallel = out.tensor_parallel,
                                     .in_memory = in_memory,
                                     .bf16_rows = out.expert_activations == DType::kBF16}));
  out.halved_rows = steps.halved_rows;
  out.prompt_experts = steps.experts;
  const int32_t cpus = options.threads > 0 ? options.threads : UsableCpuCount();
  out.num_threads = ShareThreads(cpus, options.shards, out.on_gpu).trunk;
  return std::optional<ClusterPlanOptions>(std::move(out));
}

// The plan on standard output, before anything starts; and each service's part of --host_budget,
// which is for all of them, in `options`.
absl::Status Plan(Options* options) {
  ASSIGN_OR_RETURN(const std::optional<ClusterPlanOptions> planned, PlanOptions(*options));
  if (!planned) {
    std::printf("%s: the trunk plans on the GPU; its plan is in %s\n", options->model.c_str(),
                options->log_file.c_str());
    std::fflush(stdout);
    return absl::OkStatus();
  }
  const absl::StatusOr<ClusterPlan> made = PlanCluster(*planned);
  if (!made.ok()) {
    // What else is wrong with the model the services say, in the log too.
    return absl::IsResourceExhausted(made.status()) ? made.status() : absl::OkStatus();
  }
  const ClusterPlan& plan = *made;
  std::fputs(PlanSummary(plan).c_str(), stdout);
  std::fflush(stdout);
  if (planned->host_budget_bytes == 0) return absl::OkStatus();
  for (auto& [flag, value] : options->to_trunk) {
    if (flag != std::string_view("--host_budget")) continue;
    value = plan.on_gpu ? std::optional<std::string>() : std::to_string(plan.trunk_budget_bytes());
  }
  options->expert_budgets.clear();
  for (const ShardPlan& shard : plan.shards) {
    options->expert_budgets.push_back(shard.memory.total_bytes());
  }
  return absl::OkStatus();
}

// Where sockets may live: short paths, writable, this user's own if there is such a place.
std::string RunParent(const Options& options) {
  if (!options.run_dir.empty()) return options.run_dir;
  for (const char* name : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value == '/' && access(value, W_OK) == 0) return value;
  }
  return "/tmp";
}

absl::Status AddServices(const Options& options, const RunDirectory& run,
                         SupervisorOptions& supervised) {
  const std::string bin = ProgramDirectory();
  const int32_t cpus = options.threads > 0 ? options.threads : UsableCpuCount();
  const ThreadShares shares = ShareThreads(cpus, options.shards, IsTrunkOnGpu(options));
  nlohmann::ordered_json cluster = {{"shards", nlohmann::ordered_json::array()}};
  for (int32_t i = 0; i < options.shards; ++i) {
    SupervisorOptions::Service expert;
    expert.name = fmt::format("expert {}", i);
    expert.kind = ServiceKind::kExpert;
    expert.address = "unix:" + run.File(fmt::format("e{}.sock", i));
    auto metrics = ShiftPort(options.metrics_listen, kFirstExpertMetricsOffset + i);
    if (!metrics.ok()) return metrics.status();
    expert.argv = {bin + "/banyan-expert",
                   "--model",
                   options.model,
                   "--shard",
                   fmt::format("{}/{}", i, options.shards),
                   "--split",
                   options.split,
                   "--listen",
                   expert.address,
                   "--metrics_listen",
                   *metrics,
                   "--threads",
                   std::to_string(shares.expert)};
    Append(expert.argv, options.to_both);
    Append(expert.argv, options.to_experts);
    if (!options.expert_budgets.empty()) {
      const uint64_t budget = options.expert_budgets[static_cast<size_t>(i)];
      expert.argv.insert(expert.argv.end(), {"--host_budget", std::to_string(budget)});
    }
    cluster["shards"].push_back({{"replicas", {expert.address}}});
    supervised.services.push_back(std::move(expert));
  }
  absl::Status written = run.Write("cluster.json", cluster.dump(1) + "\n");
  if (!written.ok()) return written;

  SupervisorOptions::Service trunk;
  trunk.name = "trunk";
  trunk.kind = ServiceKind::kTrunk;
  trunk.address = options.listen;
  trunk.argv = {bin + "/banyan-trunk",
                "--model",
                options.model,
                "--listen",
                options.listen,
                "--metrics_listen",
                options.metrics_listen,
                "--cluster_config",
                run.File("cluster.json"),
                "--threads",
                std::to_string(shares.trunk),
                "--drain_timeout",
                fmt::format("{}s", options.drain_timeout_seconds)};
  Append(trunk.argv, options.to_both);
  Append(trunk.argv, options.to_trunk);
  if (options.insecure_listen) trunk.argv.push_back("--insecure_listen");
  trunk.argv.insert(trunk.argv.end(), options.trunk_options.begin(), options.trunk_options.end());
  supervised.services.push_back(std::move(trunk));
  return absl::OkStatus();
}

std::vector<std::string> ReadyLines(const Options& options) {
  const std::string server =
      options.listen == kDefaultServer ? "" : fmt::format(" --server {}", options.listen);
  std::vector<std::string> lines = {
      fmt::format("ready: {} answers on {}", options.model, options.listen),
      fmt::format("  talk to it   banyan chat{}", server),
      fmt::format("  look at it   banyan status{}", server)};
  if (!options.metrics_listen.empty()) {
    lines.push_back(fmt::format("  metrics      http://{}/metrics", options.metrics_listen));
  }
  lines.push_back(fmt::format("  log          {}", options.log_file));
  lines.push_back("  end it       Ctrl-C");
  return lines;
}

// A trunk that had to be killed leaves its Unix socket; one that somebody listens on stays.
void RemoveDeadSocket(const std::string& listen) {
  constexpr std::string_view kUnix = "unix:";
  sockaddr_un address{};
  if (listen.rfind(kUnix, 0) != 0 || listen.size() - kUnix.size() >= sizeof(address.sun_path)) {
    return;
  }
  address.sun_family = AF_UNIX;
  listen.copy(address.sun_path, sizeof(address.sun_path) - 1, kUnix.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
      errno == ECONNREFUSED) {
    unlink(address.sun_path);
  }
  close(fd);
}

int Run(const Options& given) {
  Options options = given;
  if (absl::Status status = SetLogLevel(options.log_level); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  const absl::StatusOr<LogFormat> log_format = ParseLogFormat(options.log_format);
  if (!log_format.ok()) return FailUsage(ToStd(log_format.status().message()));
  if (absl::Status status = CheckServerAddress(options.listen); !status.ok()) {
    return FailUsage(
        fmt::format("--listen: {} (a port of its own, not 0)", ToStd(status.message())));
  }
  if (!std::filesystem::exists(options.model)) {
    return Fail(StatusF(absl::StatusCode::kNotFound, "--model {}: no such directory",
                        Printable(options.model)));
  }
  NameMappingFaults();
  if (absl::Status status = Plan(&options); !status.ok()) {
    return absl::IsInvalidArgument(status) && ToStd(status.message()).starts_with("--")
               ? FailUsage(ToStd(status.message()))
               : Fail(status);
  }
  BlockSupervisorSignals();
  auto run = RunDirectory::Create(RunParent(options));
  if (!run.ok()) return Fail(run.status());

  SupervisorOptions supervised;
  supervised.log_path = options.log_file;
  supervised.log_format = *log_format;
  supervised.pass_log_flags = true;
  supervised.drain_limit = absl::Seconds(options.drain_timeout_seconds) + kKillGrace;
  supervised.when_ready = ReadyLines(options);
  if (absl::Status status = AddServices(options, **run, supervised); !status.ok()) {
    return status.code() == absl::StatusCode::kInvalidArgument ? FailUsage(ToStd(status.message()))
                                                               : Fail(status);
  }
  auto supervisor = Supervisor::Create(std::move(supervised), stdout, isatty(STDOUT_FILENO) == 1);
  if (!supervisor.ok()) return Fail(supervisor.status());
  const absl::Status status = (*supervisor)->Run();
  RemoveDeadSocket(options.listen);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace

void AddServe(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("serve", "Run a trunk and its experts on this machine until Ctrl-C");
  verb->add_option("--model", options->model, "Checkpoint directory")->required()->type_name("DIR");
  verb->add_option("--shards", options->shards, "Expert services to start")
      ->check(CLI::Range(1, kMaxShards))
      ->capture_default_str();
  verb->add_option("--split", options->split,
                   "What a shard holds: a slice of every expert's "
                   "width, or whole experts")
      ->check(CLI::IsMember({"width", "experts"}))
      ->capture_default_str();
  verb->add_option("--listen", options->listen, "Where the trunk listens: host:port or unix:/path")
      ->capture_default_str();
  verb->add_flag("--insecure_listen", options->insecure_listen,
                 "Allow an address outside loopback without TLS");
  verb->add_option("--metrics_listen", options->metrics_listen,
                   "Metrics of the trunk; expert i gets this port + 10 + i; \"\": none")
      ->capture_default_str();
  verb->add_option("--threads", options->threads,
                   "CPUs to share out among the services; 0: all this process may use")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--log_file", options->log_file, "Log of all services, appended to")
      ->type_name("FILE")
      ->capture_default_str();
  verb->add_option("--log_level", options->log_level,
                   "debug, info, warning or error, in all services; SIGUSR1 to this process makes "
                   "all one step more verbose, SIGUSR2 one less")
      ->capture_default_str();
  verb->add_option("--log_format", options->log_format,
                   "key_value or json: one object a line, with the service it comes from")
      ->capture_default_str();
  verb->add_option("--run_dir", options->run_dir,
                   "Parent of the directory for sockets (default: XDG_RUNTIME_DIR, TMPDIR or /tmp)")
      ->type_name("DIR");
  verb->add_option("--drain_timeout", options->drain_timeout_seconds,
                   "Seconds that answers under way get at the end")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  for (auto* flags : {&options->to_trunk, &options->to_both, &options->to_experts}) {
    for (auto& [name, value] : *flags) {
      const bool shared_out = name == std::string_view("--host_budget");
      verb->add_option(name, value,
                       shared_out ? "Host memory for all services, shared out by the plan"
                                  : "As in banyan-trunk and banyan-expert")
          ->group("Handed on to the services");
    }
  }
  verb->add_option("trunk_options", options->trunk_options,
                   "After --: further options of banyan-trunk, handed on as they are");
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
