#include "services/trunk/sampling/sampling_params.h"

#include <limits>
#include <random>

#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::trunk {
namespace {

absl::Status CheckRange(std::string_view name, float value, float low, float high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgumentF("{} {}: expected a number from {} to {}", name, value, low, high);
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params, int32_t vocab_size) {
  RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0.0f, 1000.0f));
  if (params.top_k < 0) {
    return InvalidArgumentF("top_k {}: expected 0 (all) or more", params.top_k);
  }
  RETURN_IF_ERROR(CheckRange("top_p", params.top_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(CheckRange("repetition_penalty", params.repetition_penalty, 0.01f, 100.0f));
  RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty, -100.0f, 100.0f));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty, -100.0f, 100.0f));
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return InvalidArgumentF("logit_bias for token id {}: expected ids from 0 to {}", id,
                              vocab_size - 1);
    }
    RETURN_IF_ERROR(
        CheckRange(fmt::format("logit_bias of token id {}:", id), bias, -1000.0f, 1000.0f));
  }
  return absl::OkStatus();
}

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace banyan::trunk
