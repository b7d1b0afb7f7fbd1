#include "services/expert/expert_options.h"

#include <CLI/CLI.hpp>

#include "common/base/byte_size.h"
#include "common/base/command_line.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/version.h"
#include "common/pool/pack_path.h"
#include "common/rpc/channel_settings.h"

namespace banyan::expert {
namespace {

constexpr int kMaxThreads = 1024;

absl::Status CheckPoolFormat(const std::string& format) {
  for (const char* known : {"auto", "bf16", "int8", "nf4", "int4"}) {
    if (format == known) return absl::OkStatus();
  }
  return InvalidArgumentF("--pool_format '{}': expected auto, bf16, int8, nf4 or int4",
                          Printable(format));
}

absl::Status CheckCpuTier(const std::string& tier) {
  for (const char* known : {"auto", "scalar", "avx2", "avx512", "avx512_vnni", "amx"}) {
    if (tier == known) return absl::OkStatus();
  }
  return InvalidArgumentF(
      "--cpu_tier '{}': expected auto, scalar, avx2, avx512, avx512_vnni or amx", Printable(tier));
}

}  // namespace

absl::StatusOr<std::optional<ExpertOptions>> ParseExpertOptions(int argc, const char* const* argv) {
  ExpertOptions options;
  std::string shard = "0/1";
  std::string split = "width";
  std::string load_format = "auto";
  std::string pool_memory = "map";
  std::string host_budget = "0";
  options.pool_dir = DefaultPoolDir();
  CLI::App app("Serves one shard of a model's expert pool to a trunk.");
  app.name("banyan-expert");
  app.set_version_flag("--version", fmt::format("banyan-expert {}", Version()));
  app.add_option("--model", options.model_dir, "Checkpoint directory")
      ->required()
      ->type_name("DIR");
  app.add_option("--listen", options.listen, "host:port or unix:/path")->capture_default_str();
  app.add_option("--metrics_listen", options.metrics_listen,
                 "host:port of the Prometheus metrics; empty: none")
      ->capture_default_str();
  app.add_option("--shard", shard, "I/N: which of N shards, N 1 to 8")->capture_default_str();
  app.add_option("--split", split,
                 "width (a slice of every expert) or experts (whole ones); the same on all shards")
      ->capture_default_str();
  app.add_option("--load_format", load_format,
                 "auto (the checkpoint's files) or dummy (generated weights, of which only "
                 "config.json is needed); the same as the trunk's")
      ->capture_default_str();
  app.add_option(
         "--pool_format", options.pool_format,
         "auto (the checkpoint's own precision: bf16 and f32 in place, NF4 as nf4, other quantised "
         "weights as bf16), bf16, int8, nf4 or int4; the same on all shards. What is not served "
         "in place is packed once")
      ->capture_default_str();
  app.add_option("--pool_dir", options.pool_dir,
                 "Where packs are kept (default: /var/lib/banyan/packs where /var/lib/banyan is "
                 "writable, else ~/.cache/banyan)")
      ->type_name("DIR");
  app.add_flag("--verify_pool", options.verify_pool,
               "Compare the checksums of a pack that is there before serving it; a damaged one is "
               "packed again");
  app.add_option(
         "--pool_memory", pool_memory,
         "Where a pack's weights lie: map (the page cache), shm (a segment of /dev/shm that "
         "outlives the process) or anonymous (huge pages of the process)")
      ->capture_default_str();
  app.add_flag("--mlock", options.pool_memory.lock, "Lock a pack's weights into memory");
  app.add_option("--host_budget", host_budget,
                 "Memory that a pack may take, such as 40GiB; 0: what this machine has")
      ->capture_default_str();
  app.add_option("--threads", options.num_threads, "Compute threads; 0: one per usable CPU")
      ->capture_default_str();
  app.add_option(
         "--cpu_tier", options.cpu_tier,
         "Kernels: auto, scalar, avx2, avx512, avx512_vnni or amx; the fastest at or below it "
         "that a pool format has")
      ->capture_default_str();
  app.add_flag("--insecure_listen", options.insecure_listen,
               "Allow an address that other machines reach, without TLS");
  app.add_option("--log_level", options.log_level,
                 "debug, info, warning or error; SIGUSR1 makes a running process one step more "
                 "verbose, SIGUSR2 one less")
      ->capture_default_str();
  app.add_option("--log_format", options.log_format, "key_value or json: one object a line")
      ->capture_default_str();

  try {
    app.parse(CommandLineArguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      app.exit(error);  // prints the help or the version
      return std::nullopt;
    }
    return InvalidArgumentF("{} (see banyan-expert --help)", error.what());
  }

  const absl::StatusOr<ShardSplit> mode = ParseShardSplit(split);
  if (!mode.ok()) return Annotate(mode.status(), "--split");
  absl::StatusOr<ShardSpec> spec = ParseShard(shard, *mode);
  if (!spec.ok()) return Annotate(spec.status(), "--shard");
  options.shard = *spec;
  RETURN_IF_ERROR(CheckPoolFormat(options.pool_format));
  RETURN_IF_ERROR(CheckCpuTier(options.cpu_tier));
  const absl::StatusOr<LoadFormat> loaded = ParseLoadFormat(load_format);
  if (!loaded.ok()) return Annotate(loaded.status(), "--load_format");
  options.load_format = *loaded;
  const absl::StatusOr<PoolMemoryMode> memory = ParsePoolMemory(pool_memory);
  if (!memory.ok()) return Annotate(memory.status(), "--pool_memory");
  options.pool_memory.mode = *memory;
  const absl::StatusOr<uint64_t> budget = ParseByteSize(host_budget);
  if (!budget.ok()) return Annotate(budget.status(), "--host_budget");
  options.pool_memory.budget_bytes = *budget;
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return InvalidArgumentF("--threads {}: expected 0 to {}", options.num_threads, kMaxThreads);
  }
  RETURN_IF_ERROR(
      Annotate(CheckListenAddress(options.listen, options.insecure_listen), "--listen"));
  RETURN_IF_ERROR(Annotate(SetLogLevel(options.log_level), "--log_level"));
  RETURN_IF_ERROR(Annotate(SetLogFormat(options.log_format), "--log_format"));
  return options;
}

}  // namespace banyan::expert
