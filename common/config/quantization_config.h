// quantization_config of config.json. It decides nothing: what a matrix is, its tensors say
// (stored_matrix.h). It is compared with them.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/config/json_object.h"
#include "common/config/stored_format.h"

namespace banyan {

struct QuantizationConfig {
  std::string text;  // `quantization_config: bitsandbytes nf4`, for messages
  StoredFormat format = StoredFormat::kNF4;  // of every quantised matrix
  std::optional<bool> double_quant;          // of the scales, bitsandbytes 4-bit
};

// nullopt when the checkpoint says nothing. kUnimplemented names a method, type or block size that
// is not supported, and what is; kInvalidArgument: not as transformers write it.
absl::StatusOr<std::optional<QuantizationConfig>> ReadQuantizationConfig(const JsonObject& root);

}  // namespace banyan
