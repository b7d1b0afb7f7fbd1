// `banyan synth`: a checkpoint with generated weights, of any geometry and format, to try load,
// plan and speed without the real files.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/parallel/topology.h"
#include "common/synth/synth_config.h"
#include "common/synth/synth_plan.h"
#include "common/synth/synth_writer.h"
#include "services/client/commands/command.h"
#include "services/client/terminal/byte_progress.h"
#include "services/client/terminal/interrupts.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

struct Options {
  std::string out;
  std::string config;
  std::vector<std::string> set;
  std::string format = "bf16";
  SynthOptions synth;
  std::string tokenizer;
  int threads = 0;
  bool dry_run = false;
  std::string output = "text";
};

std::string Bytes(uint64_t bytes) { return HumanBytes(static_cast<double>(bytes)); }

void PrintPlan(const Options& options, const SynthConfig& config, const SynthPlan& plan) {
  std::printf("%s: %d layers, hidden %d, %d experts, %s%s\n", options.out.c_str(),
              config.model.num_hidden_layers, config.model.hidden_size, config.model.num_experts,
              options.format.c_str(), options.synth.fused ? ", fused experts" : "");
  std::printf("  %zu tensors in %zu file(s), %s (%llu bytes)\n", plan.tensors.size(),
              plan.files.size(), Bytes(plan.total_bytes).c_str(),
              static_cast<unsigned long long>(plan.total_bytes));
  std::fflush(stdout);
}

absl::Status Write(const Options& options, const SynthPlan& plan,
                   const std::vector<std::string>& copies) {
  // Ctrl-C ends the work in order: nothing stays.
  Interrupts interrupts(/*exit_when_idle=*/true);
  std::atomic<bool> stopped{false};
  const Interrupts::Scope scope(interrupts, [&] { stopped = true; });
  WorkerPool pool({.num_threads = options.threads > 0 ? options.threads : UsableCpuCount()});
  ByteProgress line(stderr, isatty(STDERR_FILENO) == 1);
  const absl::Time start = absl::Now();
  return WriteSynth(plan, copies, options.out, pool, [&](const SynthProgress& progress) {
    if (options.output == "text") {
      if (progress.phase == SynthProgress::Phase::kWrite) {
        line.Update("writing", progress.bytes_done, progress.bytes_total,
                    absl::ToDoubleSeconds(absl::Now() - start));
      } else {
        line.Update("syncing", 0, 0, 0);
      }
    }
    return !stopped.load();
  });
}

absl::Status Synth(const Options& options) {
  ASSIGN_OR_RETURN(const SynthConfig config, MakeSynthConfig(options.config, options.set));
  ASSIGN_OR_RETURN(const SynthPlan plan, PlanSynth(config, options.synth));
  std::vector<std::string> copies;
  if (!options.tokenizer.empty()) {
    ASSIGN_OR_RETURN(copies, TokenizerFiles(options.tokenizer));
    for (std::string& name : copies) name = options.tokenizer + "/" + name;
  }
  if (options.output == "text") PrintPlan(options, config, plan);
  const absl::Time start = absl::Now();
  if (!options.dry_run) RETURN_IF_ERROR(Write(options, plan, copies));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  if (options.output == "json") {
    nlohmann::ordered_json json = {
        {"directory", options.out},     {"format", options.format},
        {"fused", options.synth.fused}, {"tensors", plan.tensors.size()},
        {"files", plan.files.size()},   {"tensor_bytes", plan.tensor_bytes},
        {"bytes", plan.total_bytes},    {"written", !options.dry_run}};
    if (!options.dry_run) json["seconds"] = seconds;
    std::printf("%s\n",
                json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else if (!options.dry_run) {
    std::printf(
        "  written in %s, %s/s\n", HumanSeconds(seconds).c_str(),
        HumanBytes(static_cast<double>(plan.total_bytes) / std::max(seconds, 1e-9)).c_str());
  }
  return absl::OkStatus();
}

int Run(Options options) {
  const absl::StatusOr<SynthFormat> format = ParseSynthFormat(options.format);
  if (!format.ok()) {
    return FailUsage(fmt::format("--format: {}", ToStd(format.status().message())));
  }
  options.synth.format = *format;
  if (options.synth.quantise_router &&
      (*format == SynthFormat::kBF16 || *format == SynthFormat::kFP8)) {
    return FailUsage("--quantize_router: expected --format nf4, nf4-single or int8");
  }
  signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes is an error of write
  const absl::Status status = Synth(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace

void AddSynth(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("synth", "Write a checkpoint with generated weights in any format");
  verb->add_option("--out", options->out, "Directory to make; absent or empty")
      ->required()
      ->type_name("DIR");
  verb->add_option("--config", options->config,
                   "A config.json, a directory with one, or a geometry: " + SynthGeometryNames())
      ->required()
      ->type_name("FILE");
  verb->add_option("--set", options->set,
                   "KEY=VALUE, VALUE in JSON: another value in config.json; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  verb->add_option("--format", options->format,
                   "bf16; nf4 or nf4-single: bitsandbytes 4-bit with and without double "
                   "quantisation; int8: LLM.int8; fp8: e4m3 with block scales")
      ->check(CLI::IsMember({"bf16", "nf4", "nf4-single", "int8", "fp8"}))
      ->capture_default_str();
  verb->add_flag("--fused", options->synth.fused,
                 "Experts as two tensors a layer, which stay bf16 in every format");
  verb->add_flag("--quantize_router", options->synth.quantise_router,
                 "nf4, nf4-single, int8: the router and the shared expert's gate too");
  verb->add_option("--shards", options->synth.num_files, "Files; 0: as few as hold 5 GB each")
      ->check(CLI::Range(0, 99999))
      ->capture_default_str();
  verb->add_option("--seed", options->synth.seed, "Of the weights; 0: those of --load_format dummy")
      ->capture_default_str();
  verb->add_option("--tokenizer", options->tokenizer,
                   "Copy the tokenizer and generation_config.json of this directory")
      ->type_name("DIR");
  verb->add_option("--threads", options->threads, "Threads; 0: one per usable CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  verb->add_flag("--dry_run", options->dry_run, "Only say how large it would be");
  verb->add_option("--output", options->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
