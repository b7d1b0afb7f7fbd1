// Makes the pack of a shard from a checkpoint, once, with all threads of a pool.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/io/expert_pack.h"
#include "common/parallel/worker_pool.h"
#include "common/pool/pack_file.h"
#include "common/pool/shard.h"
#include "common/quant/pool_format.h"

namespace banyan {

// A checkpoint that CheckComplete has passed; borrowed.
struct PackRequest {
  const Checkpoint* checkpoint = nullptr;
  const ModelConfig* config = nullptr;
  ShardSpec shard;
  PoolFormat format = PoolFormat::kInt8;
  std::string pool_dir;
};

using PackResult = FoundPack<ExpertPack>;

// What the pack of this request says of itself, without its checksums. kInvalidArgument when the
// shard gets nothing.
absl::StatusOr<ExpertPackHeader> WantedPackHeader(const PackRequest& request);

// kFailedPrecondition names what a pack is of instead: another model, shard or format, or source
// files that were rewritten since.
absl::Status CheckPackFits(const ExpertPack& pack, const ExpertPackHeader& wanted);

// The pack that is there: errors of ExpertPack::Open and CheckPackFits.
absl::StatusOr<ExpertPack> OpenPack(const PackRequest& request);

// The pack that is there if it is whole (header and size) and fits, else a new one; but a whole
// pack of another model, shard, format or newer version is an error (CheckPackFits, kUnimplemented)
// and stays, unless `rebuild` asks for a new one whatever is there. A new one is written to a
// temporary name, read back against its checksums, synced and renamed over the old one, under a
// file lock, so that neither a crash nor a second process leaves a half pack under the name. What a
// killed run left in the folder is removed. Errors leave the old pack as it is and no temporary
// file: kResourceExhausted (disk full), kPermissionDenied, kDataLoss (the checkpoint cannot be
// read, changed meanwhile or holds a weight that is not finite: tensor and place are named).
absl::StatusOr<PackResult> EnsurePack(const PackRequest& request, WorkerPool& pool,
                                      PackProgressFn progress, bool rebuild = false);

// Reads every expert and compares its checksum. kDataLoss names the first damaged one and says how
// many there are.
absl::Status VerifyPack(const ExpertPack& pack, WorkerPool& pool, PackProgressFn progress);

}  // namespace banyan
