#include "services/trunk/state/kv_cache.h"

#include "common/base/strings.h"
#include "common/plan/decoder_memory.h"

namespace banyan::trunk {
absl::StatusOr<KvCache> KvCache::Create(const AttentionShape& shape, int32_t num_layers,
                                        int32_t num_pages, Backend* backend) {
  KvCache cache;
  const size_t bytes = static_cast<size_t>(num_pages) * KvPageBytes(shape);
  for (int32_t i = 0; i < num_layers; ++i) {
    std::byte* sides[2] = {};
    for (std::byte*& side : sides) {
      const auto memory = backend->AllocateDevice(bytes);
      if (!memory.ok()) return Annotate(memory.status(), "KV pages");
      side = *memory;
    }
    cache.layers_.push_back({sides[0], sides[1]});
  }
  return cache;
}

}  // namespace banyan::trunk
