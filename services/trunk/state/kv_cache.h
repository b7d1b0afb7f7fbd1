// Keys and values of the full-attention layers, in pages of kOpsPageTokens tokens. A page id means
// the same place in every layer. Of shape.cache_dtype; the layout inside a page is the backend's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

// The memory belongs to the backend.
class KvCache {
 public:
  struct Layer {
    void* keys = nullptr;  // [num_pages, num_kv_heads * head_dim * kOpsPageTokens]
    void* values = nullptr;
  };

  // Allocates KvCacheBytes (common/plan/decoder_memory.h). kResourceExhausted when the memory is
  // not there.
  static absl::StatusOr<KvCache> Create(const AttentionShape& shape, int32_t num_layers,
                                        int32_t num_pages, Backend* backend);

  // The i-th full-attention layer.
  const Layer& layer(int32_t i) const { return layers_[static_cast<size_t>(i)]; }

 private:
  std::vector<Layer> layers_;
};

}  // namespace banyan::trunk
