// `banyan pack`: the pack of a shard, made in advance of the expert's first start.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/config/tensor_inventory.h"
#include "common/io/mapping_fault.h"
#include "common/parallel/topology.h"
#include "common/pool/own_format.h"
#include "common/pool/pack_builder.h"
#include "common/pool/pack_path.h"
#include "services/client/commands/command.h"
#include "services/client/terminal/byte_progress.h"
#include "services/client/terminal/interrupts.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

struct Options {
  std::string model;
  std::string pool_dir = DefaultPoolDir();
  std::string load_format = "auto";
  std::string pool_format = "int8";
  std::string shard = "0/1";
  std::string split = "width";
  int threads = 0;
  bool rebuild = false;
  std::string output = "text";
};

const char* PhaseName(PackProgress::Phase phase) {
  switch (phase) {
    case PackProgress::Phase::kWait:
      return "waiting for another process that packs this shard";
    case PackProgress::Phase::kConvert:
      return "converting";
    case PackProgress::Phase::kVerify:
      return "reading back";
  }
  return "";
}

absl::StatusOr<PackResult> Pack(const Options& options, const PackRequest& request,
                                WorkerPool& pool) {
  // Ctrl-C ends the work in order: the temporary file goes, an older pack stays.
  Interrupts interrupts(/*exit_when_idle=*/true);
  std::atomic<bool> stopped{false};
  const Interrupts::Scope scope(interrupts, [&] { stopped = true; });
  const bool show = options.output == "text";
  ByteProgress line(stderr, isatty(STDERR_FILENO) == 1);
  PackProgress::Phase phase = PackProgress::Phase::kWait;
  absl::Time phase_start = absl::Now();
  return EnsurePack(
      request, pool,
      [&](const PackProgress& progress) {
        if (progress.phase != phase) phase_start = absl::Now();
        phase = progress.phase;
        if (show) {
          line.Update(PhaseName(phase), progress.bytes_done, progress.bytes_total,
                      absl::ToDoubleSeconds(absl::Now() - phase_start));
        }
        return !stopped.load();
      },
      options.rebuild);
}

void PrintText(const PackResult& result) {
  const ExpertPackLayout& layout = result.pack.layout();
  if (!result.rejected.ok()) {
    std::printf("replaced what was there: %s\n",
                std::string(ToStd(result.rejected.message())).c_str());
  }
  if (!result.built) {
    std::printf("%s\n  is there and fits: %s, nothing to do (--rebuild packs again)\n",
                result.pack.path().c_str(),
                HumanBytes(static_cast<double>(layout.file_bytes)).c_str());
    return;
  }
  const PackStats& stats = *result.built;
  const double busy = stats.read_seconds + stats.convert_seconds + stats.write_seconds;
  const auto share = [&](double part) { return busy > 0 ? 100 * part / busy : 0.0; };
  // What the checkpoint's bytes would take if the threads did nothing else.
  const auto rate_of = [&](double seconds) {
    const double each = seconds / stats.num_threads;
    return HumanBytes(each > 0 ? static_cast<double>(stats.source_bytes) / each : 0) + "/s";
  };
  const double disk = stats.read_seconds + stats.write_seconds;
  std::printf(
      "%s\n  read %s at %s/s, wrote %s in %s; synced in %s, read back and checked in %s\n"
      "  %d threads: %.0f %% reading, %.0f %% converting, %.0f %% writing\n"
      "  limits: disk %s, CPUs %s: %s\n",
      result.pack.path().c_str(), HumanBytes(static_cast<double>(stats.source_bytes)).c_str(),
      HumanBytes(static_cast<double>(stats.source_bytes) / std::max(stats.seconds, 1e-9)).c_str(),
      HumanBytes(static_cast<double>(stats.pack_bytes)).c_str(),
      HumanSeconds(stats.seconds).c_str(), HumanSeconds(stats.sync_seconds).c_str(),
      HumanSeconds(stats.verify_seconds).c_str(), stats.num_threads, share(stats.read_seconds),
      share(stats.convert_seconds), share(stats.write_seconds), rate_of(disk).c_str(),
      rate_of(stats.convert_seconds).c_str(),
      disk > stats.convert_seconds ? "the disk decides" : "the CPUs decide");
}

void PrintJson(const PackResult& result) {
  nlohmann::ordered_json json = {{"pack", result.pack.path()},
                                 {"bytes", result.pack.layout().file_bytes},
                                 {"built", result.built.has_value()}};
  if (result.built) {
    const PackStats& stats = *result.built;
    json["source_bytes"] = stats.source_bytes;
    json["seconds"] = stats.seconds;
    json["sync_seconds"] = stats.sync_seconds;
    json["verify_seconds"] = stats.verify_seconds;
    json["threads"] = stats.num_threads;
    json["read_thread_seconds"] = stats.read_seconds;
    json["convert_thread_seconds"] = stats.convert_seconds;
    json["write_thread_seconds"] = stats.write_seconds;
  }
  std::printf("%s\n", json.dump().c_str());
}

void PrintNothingToDo(const Options& options) {
  if (options.output == "json") {
    std::printf(
        "%s\n",
        nlohmann::ordered_json{{"pack", nullptr}, {"bytes", 0}, {"built", false}}.dump().c_str());
  } else {
    std::printf("%s: its experts are served where the checkpoint is mapped, nothing to do\n",
                options.model.c_str());
  }
}

absl::Status PackModel(const Options& options, const PackRequest& flags) {
  PackRequest request = flags;
  ASSIGN_OR_RETURN(const LoadFormat load_format, ParseLoadFormat(options.load_format));
  ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model, load_format));
  ASSIGN_OR_RETURN(const CheckpointSummary summary, CheckComplete(*model.checkpoint, model.config));
  request.checkpoint = model.checkpoint.get();
  request.config = &model.config;
  if (options.pool_format == "auto") {
    ASSIGN_OR_RETURN(const std::optional<PoolFormat> own,
                     OwnPoolFormat(*model.checkpoint, model.config, summary));
    if (!own) {
      PrintNothingToDo(options);
      return absl::OkStatus();
    }
    request.format = *own;
  }
  WorkerPool pool({.num_threads = options.threads > 0 ? options.threads : UsableCpuCount()});
  ASSIGN_OR_RETURN(const PackResult result, Pack(options, request, pool));
  if (options.output == "json") {
    PrintJson(result);
  } else {
    PrintText(result);
  }
  return absl::OkStatus();
}

int Run(const Options& options) {
  PackRequest request;
  const auto usage = [](const char* flag, const absl::Status& status) {
    return FailUsage(fmt::format("{}: {}", flag, ToStd(status.message())));
  };
  if (options.pool_format != "auto") {
    const absl::StatusOr<PoolFormat> format = ParsePoolFormatFlag(options.pool_format);
    if (!format.ok()) return usage("--pool_format", format.status());
    request.format = *format;
  }
  const absl::StatusOr<ShardSplit> split = ParseShardSplit(options.split);
  if (!split.ok()) return usage("--split", split.status());
  const absl::StatusOr<ShardSpec> shard = ParseShard(options.shard, *split);
  if (!shard.ok()) return usage("--shard", shard.status());
  if (options.pool_dir.empty()) return FailUsage("--pool_dir is required: no home directory");
  request.shard = *shard;
  request.pool_dir = options.pool_dir;
  NameMappingFaults();
  signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes is an error of write
  const absl::Status status = PackModel(options, request);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace

void AddPack(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "pack", "Convert the experts of a shard into a pool format, ahead of its first start");
  verb->add_option("--model", options->model, "Checkpoint directory")->required()->type_name("DIR");
  verb->add_option("--load_format", options->load_format, "auto or dummy, as in banyan-expert")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  verb->add_option("--pool_dir", options->pool_dir,
                   "Where packs are kept (default: as in banyan-expert)")
      ->type_name("DIR");
  verb->add_option("--pool_format", options->pool_format,
                   "bf16, int8, nf4, int4 or auto (as in banyan-expert)")
      ->capture_default_str();
  verb->add_option("--shard", options->shard, "I/N: which of N shards")->capture_default_str();
  verb->add_option("--split", options->split, "width or experts, as the experts are started")
      ->capture_default_str();
  verb->add_option("--threads", options->threads, "Threads; 0: one per usable CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  verb->add_flag("--rebuild", options->rebuild, "Pack again although a sound pack is there");
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
