// An expert of a dummy checkpoint in a quantised pool format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/io/expert_pack.h"

namespace banyan {

// Whether the pool of `checkpoint` in `format` is generated (common/pool/generated_matrix.h) and
// not made from the checkpoint's values: it is a dummy one and the format is quantised.
bool IsGeneratedPool(const Checkpoint& checkpoint, PoolFormat format);

// Expert `idx` of the pack that `header` describes: LayoutOf(header).expert_bytes bytes, all
// written, 64-byte aligned. Errors of GetExpertTensors. Thread-safe.
absl::Status GenerateExpert(const Checkpoint& checkpoint, const ModelConfig& config,
                            const ExpertPackHeader& header, int64_t idx, std::byte* out);

}  // namespace banyan
