// A model's tensors by --load_format.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"

namespace banyan {

enum class LoadFormat : uint8_t {
  kAuto,   // the checkpoint's files
  kDummy,  // generated weights: sizes and speeds of a model of which only config.json is there
};
// "auto", "dummy"; kInvalidArgument.
absl::StatusOr<LoadFormat> ParseLoadFormat(std::string_view name);

// Every tensor of a model as it is generated: the trunk's in order of use, then the routed experts'
// by layer and expert, gate_proj, up_proj, down_proj. Matrices have a deviation of one by the
// square root of their inputs, so that activations keep their size from layer to layer; norms,
// decays and convolutions are near those of trained models.
std::vector<GeneratedTensor> GeneratedTensors(const ModelConfig& config);

// Errors of Checkpoint::Open or Generate.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& directory,
                                                           const ModelConfig& config,
                                                           LoadFormat format);

// Checkpoint and configuration of a directory.
struct OpenedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
};
absl::StatusOr<OpenedModel> OpenModel(const std::string& directory, LoadFormat format);

}  // namespace banyan
