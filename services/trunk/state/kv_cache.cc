#include "services/trunk/state/kv_cache.h"

#include "common/base/status_macros.h"
#include "common/plan/decoder_memory.h"

namespace banyan::trunk {
absl::StatusOr<KvCache> KvCache::Create(const AttentionShape& shape, int32_t num_layers,
                                        int32_t num_pages, Backend* backend) {
  KvCache cache;
  const size_t bytes = static_cast<size_t>(num_pages) * KvPageBytes(shape);
  for (int32_t i = 0; i < num_layers; ++i) {
    ASSIGN_OR_RETURN(std::byte * keys, backend->AllocateDevice(bytes));
    ASSIGN_OR_RETURN(std::byte * values, backend->AllocateDevice(bytes));
    cache.layers_.push_back({keys, values});
  }
  return cache;
}

}  // namespace banyan::trunk
