// The pool of a host from its files to an executor: bf16 and f32 experts are used where they are
// mapped, others and other pool formats through a pack that is made where there is none.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/file_descriptor.h"
#include "common/config/open_checkpoint.h"
#include "common/cpu/cpu_features.h"
#include "common/memory/memory_plan.h"
#include "common/parallel/worker_pool.h"
#include "common/pool/own_format.h"
#include "common/pool/pack_builder.h"
#include "services/expert/runtime/grouped_executor.h"
#include "services/expert/runtime/pool_description.h"
#include "services/expert/runtime/pool_memory.h"

namespace banyan::expert {

struct ServedPoolOptions {
  std::string model_dir;
  ShardSpec shard;
  LoadFormat load_format = LoadFormat::kAuto;
  std::string pool_format = "auto";  // or bf16, int8, nf4, int4
  std::string pool_dir;              // of packs
  bool verify_pool = false;          // read the payload of a pack that was there
  PoolMemoryOptions memory;
  std::string cpu_tier = "auto";
  std::function<void()> on_plan = [] {};  // called when the headers are read
};

enum class PoolPhase : uint8_t { kWait, kConvert, kVerify, kRead };
// Called by the thread that loads; false ends the load with kCancelled.
using PoolProgressFn =
    absl::FunctionRef<bool(PoolPhase, uint64_t bytes_done, uint64_t bytes_total)>;

// How a load went; for the log and metrics.
struct PoolLoadReport {
  std::string pack_path;  // "": no pack is used
  PoolMemoryMode memory = PoolMemoryMode::kMap;
  absl::Status rejected;                  // why a pack that lay there was not used
  std::optional<PackStats> built;         // a pack was made
  std::optional<RoundedExperts> rounded;  // a bf16 pool of values that are not bf16
  bool reused_segment = false;
  uint64_t huge_page_bytes = 0;
};

// kUnimplemented when this CPU lacks what --cpu_tier names.
absl::Status CheckCpuTier(const std::string& tier, const CpuFeatures& features);

// Owned by one thread until Load is over; then immutable.
class ServedPool {
 public:
  virtual ~ServedPool() = default;

  // Reads headers only. Errors of Checkpoint::Open, CheckComplete and MakeShardGeometry;
  // kUnimplemented: a tier or format that this CPU or program lacks; kInvalidArgument: a pool
  // format that needs a --pool_dir without one; kResourceExhausted of PlanShard: a pool
  // larger than memory.
  static absl::StatusOr<std::unique_ptr<ServedPool>> Open(const ServedPoolOptions& options,
                                                          const CpuFeatures& features);

  virtual const PoolDescription& description() const = 0;
  virtual const MemoryPlan& memory_plan() const = 0;
  virtual const char* tier() const = 0;  // of the kernels
  virtual absl::StatusOr<PoolLoadReport> Load(WorkerPool& pool, PoolProgressFn progress) = 0;

  // After Load. Long runs of weights, to measure the speed of memory with.
  virtual std::vector<std::span<const std::byte>> ContiguousWeights() const = 0;
  // After Load. The file that the whole pool is mapped from, in the order of a pack, opened for
  // reading only. kFailedPrecondition: it is in no such file, with what to do. Thread-safe.
  virtual absl::StatusOr<FileDescriptor> OpenFile() const = 0;
  // Borrows this object and the pool.
  virtual std::unique_ptr<GroupedExecutor> MakeExecutor(WorkerPool& pool) const = 0;
};

}  // namespace banyan::expert
