#include "services/expert/expert_options.h"

#include <CLI/CLI.hpp>

#include "common/base/command_line.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/version.h"
#include "common/rpc/channel_settings.h"

namespace banyan::expert {
namespace {

constexpr int kMaxThreads = 1024;

absl::Status CheckPoolFormat(const std::string& format) {
  if (format == "auto" || format == "bf16") return absl::OkStatus();
  if (format == "int8" || format == "nf4" || format == "int4") {
    return InvalidArgumentF(
        "--pool_format {}: not supported yet; supported are auto (the checkpoint's own format) and "
        "bf16",
        format);
  }
  return InvalidArgumentF("--pool_format '{}': expected auto or bf16", Printable(format));
}

absl::Status CheckCpuTier(const std::string& tier) {
  for (const char* known : {"auto", "scalar", "avx2", "avx512"}) {
    if (tier == known) return absl::OkStatus();
  }
  return InvalidArgumentF("--cpu_tier '{}': expected auto, scalar, avx2 or avx512",
                          Printable(tier));
}

}  // namespace

absl::StatusOr<std::optional<ExpertOptions>> ParseExpertOptions(int argc, const char* const* argv) {
  ExpertOptions options;
  std::string shard = "0/1";
  std::string split = "width";
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
  app.add_option("--pool_format", options.pool_format,
                 "auto (the checkpoint's own) or bf16; other formats are not supported yet")
      ->capture_default_str();
  app.add_option("--threads", options.num_threads, "Compute threads; 0: one per usable CPU")
      ->capture_default_str();
  app.add_option("--cpu_tier", options.cpu_tier, "Kernels: auto, scalar, avx2 or avx512")
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

  ShardSplit mode;
  if (split == "width") {
    mode = ShardSplit::kWidth;
  } else if (split == "experts") {
    mode = ShardSplit::kExperts;
  } else {
    return InvalidArgumentF("--split '{}': expected width or experts", Printable(split));
  }
  absl::StatusOr<ShardSpec> spec = ParseShard(shard, mode);
  if (!spec.ok()) return Annotate(spec.status(), "--shard");
  options.shard = *spec;
  RETURN_IF_ERROR(CheckPoolFormat(options.pool_format));
  RETURN_IF_ERROR(CheckCpuTier(options.cpu_tier));
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
