// Flags of banyan-expert, validated once.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/config/open_checkpoint.h"
#include "common/pool/shard.h"
#include "services/expert/runtime/pool_memory.h"

namespace banyan::expert {

struct ExpertOptions {
  std::string model_dir;
  std::string listen = "127.0.0.1:50061";
  std::string metrics_listen = "127.0.0.1:9111";  // empty: no metrics port
  ShardSpec shard;
  LoadFormat load_format = LoadFormat::kAuto;
  std::string pool_format = "auto";  // auto, bf16, int8, nf4 or int4
  std::string pool_dir;              // of packs; "": there is no place for them
  bool verify_pool = false;
  PoolMemoryOptions pool_memory;
  int num_threads = 0;  // 0: as many as this process may use CPUs
  std::string cpu_tier = "auto";
  bool insecure_listen = false;
  std::string log_level = "info";
  std::string log_format = "key_value";
};

// kInvalidArgument: what is wrong with which flag. nullopt: --help or --version was asked for and
// printed to standard output.
absl::StatusOr<std::optional<ExpertOptions>> ParseExpertOptions(int argc, const char* const* argv);

}  // namespace banyan::expert
