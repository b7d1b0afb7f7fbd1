// Makes the trunk pack of a checkpoint, once, with all threads of a pool: every matrix that the
// trunk does not use as it is stored. docs/formats/trunk_pack.md.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/io/trunk_pack.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/trunk_format.h"
#include "common/pool/pack_file.h"

namespace banyan::trunk {

// A checkpoint that CheckComplete has passed; borrowed.
struct TrunkPackRequest {
  const Checkpoint* checkpoint = nullptr;
  const ModelConfig* config = nullptr;
  TrunkFormat format = TrunkFormat::kBf16;
  std::string pool_dir;
};

using TrunkPackResult = FoundPack<TrunkPack>;

// What the pack says of itself, without its checksums; no matrices: nothing needs one. Reads
// quant_states.
absl::StatusOr<TrunkPackHeader> WantedTrunkPackHeader(const TrunkPackRequest& request);

// As EnsurePack (common/pool/pack_builder.h) for experts: what is whole and fits is used, what is
// damaged or older than the checkpoint is made anew, what is of something else ends the start and
// stays. `wanted` has matrices.
absl::StatusOr<TrunkPackResult> EnsureTrunkPack(const TrunkPackRequest& request,
                                                const TrunkPackHeader& wanted, WorkerPool& pool,
                                                PackProgressFn progress, bool rebuild = false);

}  // namespace banyan::trunk
