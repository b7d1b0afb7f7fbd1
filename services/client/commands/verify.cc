// `banyan verify`: every checksum of a pack, or of all packs of a directory.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/mapped_file.h"
#include "common/io/mapping_fault.h"
#include "common/io/trunk_pack.h"
#include "common/parallel/topology.h"
#include "common/pool/pack_builder.h"
#include "common/pool/pack_file.h"
#include "common/pool/shard.h"
#include "services/client/commands/command.h"
#include "services/client/terminal/byte_progress.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

struct Options {
  std::string path;
  int threads = 0;
  std::string output = "text";
};

// The packs that a path stands for, sorted.
absl::StatusOr<std::vector<std::string>> PacksOf(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return std::vector<std::string>{path};
  std::vector<std::string> packs;
  std::filesystem::recursive_directory_iterator it(path, error);
  for (; !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    if (it->path().extension() == ".pack") packs.push_back(it->path().string());
  }
  if (error) return DataLossF("{}: {}", path, error.message());
  if (packs.empty()) {
    return StatusF(absl::StatusCode::kNotFound, "{}: no *.pack file", path);
  }
  std::sort(packs.begin(), packs.end());
  return packs;
}

std::string Describe(const ExpertPack& pack) {
  const ExpertPackHeader& header = pack.header();
  const ShardSpec shard{header.shard_index, header.num_shards,
                        header.split_by_experts ? ShardSplit::kExperts : ShardSplit::kWidth};
  return fmt::format("{}, shard {}, {} layers of {} experts, {}", PoolFormatName(header.format),
                     ShardText(shard), header.moe_layers.size(), header.num_shard_experts,
                     HumanBytes(static_cast<double>(pack.layout().file_bytes)));
}

std::string Describe(const TrunkPack& pack) {
  return fmt::format("trunk, {}, {} matrices, {}", pack.header().int8 ? "int8" : "bf16",
                     pack.header().matrices.size(),
                     HumanBytes(static_cast<double>(pack.layout().file_bytes)));
}

bool IsTrunkPack(const std::string& path) {
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  std::byte magic[kPackMagicBytes];
  return file.ok() && file->Read(0, magic).ok() &&
         std::memcmp(magic, kTrunkPackMagic.data(), kPackMagicBytes) == 0;
}

absl::StatusOr<std::string> Verify(const std::string& path, const Options& options,
                                   WorkerPool& pool) {
  ByteProgress line(stderr, isatty(STDERR_FILENO) == 1);
  const absl::Time start = absl::Now();
  const auto show = [&](const PackProgress& progress) {
    if (options.output == "text") {
      line.Update("verifying", progress.bytes_done, progress.bytes_total,
                  absl::ToDoubleSeconds(absl::Now() - start));
    }
    return true;
  };
  if (IsTrunkPack(path)) {
    ASSIGN_OR_RETURN(const TrunkPack pack, TrunkPack::Open(path));
    RETURN_IF_ERROR(VerifyTrunkPack(pack, pool, show));
    return Describe(pack);
  }
  ASSIGN_OR_RETURN(const ExpertPack pack, ExpertPack::Open(path));
  RETURN_IF_ERROR(VerifyPack(pack, pool, show));
  return Describe(pack);
}

int Run(const Options& options) {
  NameMappingFaults();
  const absl::StatusOr<std::vector<std::string>> packs = PacksOf(options.path);
  if (!packs.ok()) return Fail(packs.status());
  WorkerPool pool({.num_threads = options.threads > 0 ? options.threads : UsableCpuCount()});
  absl::Status first_error;
  for (const std::string& path : *packs) {
    const absl::StatusOr<std::string> sound = Verify(path, options, pool);
    if (options.output == "json") {
      nlohmann::ordered_json json = {{"pack", path}, {"sound", sound.ok()}};
      if (!sound.ok()) json["error"] = std::string(ToStd(sound.status().message()));
      std::printf("%s\n",
                  json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else if (sound.ok()) {
      std::printf("%s: sound: %s\n", path.c_str(), sound->c_str());
    }
    if (sound.ok()) continue;
    if (first_error.ok()) first_error = sound.status();
    if (options.output == "text") Fail(sound.status());
  }
  return first_error.ok() ? kExitOk : kExitFailed;
}

}  // namespace

void AddVerify(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("verify", "Compare the checksums of packs");
  verb->add_option("path", options->path, "A pack, or a directory with packs below it")
      ->required()
      ->type_name("PATH");
  verb->add_option("--threads", options->threads, "Threads; 0: one per usable CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  verb->add_option("--output", options->output, "text or json (a line for each pack)")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
