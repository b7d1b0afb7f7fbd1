// The config.json of a checkpoint that is generated: a file, a directory with one or a geometry by
// its name, with some values replaced.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/model_config.h"

namespace banyan {

enum class SynthFormat : uint8_t { kBF16, kNF4, kNF4Single, kInt8, kFP8 };
// "bf16", "nf4", "nf4-single", "int8", "fp8"; kInvalidArgument.
absl::StatusOr<SynthFormat> ParseSynthFormat(std::string_view name);
std::string_view SynthFormatName(SynthFormat format);

struct SynthConfig {
  std::string json;  // without a quantization_config
  ModelConfig model;
  // Where config.json lay, for the files beside it; empty for a geometry by name.
  std::string directory;
};

// "qwen3-next-80b, ...": the geometries that have names.
std::string SynthGeometryNames();

// `where`: a config.json, a directory with one, or a name of the above. `values`: "KEY=VALUE" of
// the top level, VALUE in JSON; with another num_hidden_layers and no layer_types of its own the
// listed types go and full_attention_interval decides. kInvalidArgument, kNotFound, and the errors
// of ParseModelConfig.
absl::StatusOr<SynthConfig> MakeSynthConfig(const std::string& where,
                                            const std::vector<std::string>& values);

// config.json as the format's own tools write it: with their quantization_config.
// `plain_modules`: linear layers that stay as they are, named where the format lists them (FP8).
std::string SynthConfigText(const SynthConfig& config, SynthFormat format,
                            const std::vector<std::string>& plain_modules);

}  // namespace banyan
