// What a host tells others of the pool that it serves.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/pool/shard.h"

namespace banyan::expert {

struct PoolDescription {
  ShardSpec shard;
  ShardGeometry geometry;
  std::vector<int32_t> moe_layers;
  std::string format;       // "bf16", "f32", "mixed" (of both), "int8", "nf4", "int4"
  uint64_t pool_bytes = 0;  // of this shard
  std::string fingerprint;
};

}  // namespace banyan::expert
