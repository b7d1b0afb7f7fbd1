// Bytes as the quant_state of a bitsandbytes 4-bit matrix.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/base/check.h"
#include "common/config/bnb_quant_state.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto state = banyan::ParseBnbQuantState(json, "fuzz");
  if (!state.ok()) {
    CHECK(!state.status().message().empty());
    return 0;
  }
  CHECK(state->quant_type == "nf4" || state->quant_type == "fp4");
  CHECK(state->block_size >= 32 && state->block_size <= 4096 && state->block_size % 2 == 0);
  CHECK(state->dtype == banyan::DType::kBF16 || state->dtype == banyan::DType::kF16 ||
        state->dtype == banyan::DType::kF32);
  CHECK(state->shape.rank() == 2);
  CHECK(state->shape.dim(0) >= 1 && state->shape.dim(1) >= 1);
  CHECK(state->shape.num_elements() >= 1);
  CHECK(!state->nested || state->nested_block_size >= 32);
  CHECK(std::isfinite(state->nested_offset));
  return 0;
}
