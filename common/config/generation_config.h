// generation_config.json: sampling defaults and end tokens of a checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan {

// Unset where the file says nothing. do_sample false sets temperature 0.
struct GenerationConfig {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int32_t> max_new_tokens;
  std::vector<int32_t> eos_token_ids;
};

absl::StatusOr<GenerationConfig> ParseGenerationConfig(std::string_view json,
                                                       std::string_view source);

// All fields unset when DIRECTORY has no such file.
absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& directory);

}  // namespace banyan
