// The pool format that keeps a checkpoint's own precision: --pool_format auto.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/config/tensor_inventory.h"
#include "common/io/checkpoint.h"
#include "common/quant/pool_format.h"
#include "common/tensor/dtype.h"

namespace banyan {

// nullopt: every routed expert is bf16 or f32 and is served where the checkpoint is mapped.
// nf4: every one is NF4 whose codes and scales the pool keeps (MatrixDecoder::IsPoolNF4). bf16:
// anything else, which is exact unless it is f16 or f32. docs/adr/own-precision.md says why.
// `summary` is what CheckComplete gave. Reads the companions of one expert of each
// layer; the builder of the pack checks the others. Errors of MatrixDecoder::Create.
absl::StatusOr<std::optional<PoolFormat>> OwnPoolFormat(const Checkpoint& checkpoint,
                                                        const ModelConfig& config,
                                                        const CheckpointSummary& summary);

// Why a bf16 pool of this checkpoint is not exact: the first matrix, among the first experts of the
// layers, whose values (DequantizedDType) are f16 or f32, and which. Rounded to bf16 such a value
// changes by at most kBF16RoundingError of itself.
struct RoundedExperts {
  std::string tensor;
  DType dtype = DType::kF16;
};
inline constexpr double kBF16RoundingError = 1.0 / 512;  // half a unit of 8 significant bits
absl::StatusOr<std::optional<RoundedExperts>> FindRoundedExperts(const Checkpoint& checkpoint,
                                                                 const ModelConfig& config);

}  // namespace banyan
