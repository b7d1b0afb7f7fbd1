#include "services/trunk/state/kv_cache.h"

#include "common/base/status_macros.h"

namespace banyan::trunk {
namespace {

size_t PageBytes(const AttentionShape& shape) {
  return static_cast<size_t>(shape.num_kv_heads) * static_cast<size_t>(shape.head_dim) *
         kOpsPageTokens * DTypeSizeBytes(shape.cache_dtype);
}

}  // namespace

size_t KvCache::Bytes(const AttentionShape& shape, int32_t num_layers, int32_t num_pages) {
  return 2 * static_cast<size_t>(num_layers) * static_cast<size_t>(num_pages) * PageBytes(shape);
}

absl::StatusOr<KvCache> KvCache::Create(const AttentionShape& shape, int32_t num_layers,
                                        int32_t num_pages, Backend* backend) {
  KvCache cache;
  const size_t bytes = static_cast<size_t>(num_pages) * PageBytes(shape);
  for (int32_t i = 0; i < num_layers; ++i) {
    ASSIGN_OR_RETURN(std::byte * keys, backend->AllocateDevice(bytes));
    ASSIGN_OR_RETURN(std::byte * values, backend->AllocateDevice(bytes));
    cache.layers_.push_back({keys, values});
  }
  return cache;
}

}  // namespace banyan::trunk
