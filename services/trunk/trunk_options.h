// Flags of banyan-trunk, validated once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/config/cluster_config.h"
#include "common/config/open_checkpoint.h"
#include "common/plan/prompt_experts.h"
#include "common/plan/trunk_format.h"
#include "common/tensor/dtype.h"

namespace banyan::trunk {

struct TrunkOptions {
  std::string model_dir;
  LoadFormat load_format = LoadFormat::kAuto;
  // Of the trunk's matrices; none: as stored where they fit, else 8-bit codes.
  std::optional<TrunkFormat> trunk_format;
  std::optional<DType> kv_dtype;           // of keys and values; none: bf16 on a GPU, else f32
  DType expert_activations = DType::kF32;  // of the rows that go to the experts; or kBF16
  bool expert_shared_memory = true;        // else all calls are gRPC frames
  std::string pool_dir;      // of the trunk pack; empty: converted in memory at each start
  bool verify_pool = false;  // read all of a pack that was there
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:9101";  // empty: no metrics port
  ClusterConfig cluster;                          // --cluster_config or --experts
  int32_t max_context_tokens = 0;                 // 0: what model and memory allow
  int32_t max_sequences = 0;                      // 0: up to 32, what memory allows
  int32_t max_batch_tokens = 0;                   // 0: up to 512, on a GPU 4159, what memory allows
  int32_t halved_rows = 0;  // steps of so many rows run as two halves; 0: none
  PromptExpertShare prompt_experts;
  int32_t long_prompt_tokens = kLongPromptTokens;
  int32_t max_queued_requests = 64;
  uint64_t host_budget_bytes = 0;  // 0: a share of the available memory
  bool use_cuda = false;           // --backend cuda, or auto where there is a GPU
  int32_t tensor_parallel = 1;     // devices that share the trunk
  uint64_t vram_budget_bytes = 0;  // of each GPU; 0: a share of what it has free
  int num_threads = 0;             // 0: as many as this process may use CPUs
  std::string cpu_tier = "auto";
  absl::Duration expert_wait = absl::Seconds(10);
  absl::Duration drain_timeout = absl::Seconds(30);
  absl::Duration slow_client_timeout = absl::Seconds(30);
  bool insecure_listen = false;
  std::string log_level = "info";
  std::string log_format = "key_value";
};

// kInvalidArgument: what is wrong with which flag; kUnimplemented: a backend that this build lacks.
// nullopt: --help or --version was asked for and printed to standard output.
absl::StatusOr<std::optional<TrunkOptions>> ParseTrunkOptions(int argc, const char* const* argv);

}  // namespace banyan::trunk
