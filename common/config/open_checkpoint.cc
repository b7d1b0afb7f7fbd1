#include "common/config/open_checkpoint.h"

#include <cmath>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"

namespace banyan {
namespace {

GeneratedTensor DummyOf(const TensorSpec& spec) {
  const std::string_view name = spec.name;
  const auto fan_in = static_cast<float>(spec.shape.dim(spec.shape.rank() - 1));
  GeneratedTensor out{.name = spec.name, .shape = spec.shape, .mean = 0, .deviation = 0.02f};
  if (name.ends_with("linear_attn.norm.weight")) {
    out.mean = 1;
    out.deviation = 0.05f;
  } else if (name.ends_with("norm.weight")) {  // zero-centred
    out.deviation = 0.05f;
  } else if (name.ends_with("A_log")) {
    out.mean = 1.4f;
    out.deviation = 0.8f;
  } else if (name.ends_with("dt_bias")) {
    out.mean = -3;
    out.deviation = 1;
  } else if (name.ends_with("conv1d.weight")) {
    out.deviation = 0.3f;
  } else if (!name.ends_with("embed_tokens.weight")) {
    out.deviation = 1 / std::sqrt(fan_in);
  }
  return out;
}

}  // namespace

absl::StatusOr<LoadFormat> ParseLoadFormat(std::string_view name) {
  if (name == "auto") return LoadFormat::kAuto;
  if (name == "dummy") return LoadFormat::kDummy;
  return InvalidArgumentF("'{}': expected auto or dummy", Printable(name));
}

std::vector<GeneratedTensor> GeneratedTensors(const ModelConfig& config) {
  std::vector<GeneratedTensor> tensors;
  for (const TensorSpec& spec : TrunkTensors(config)) tensors.push_back(DummyOf(spec));
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.mlps[static_cast<size_t>(layer)] != MlpKind::kMoe) continue;
    for (const TensorSpec& spec : RoutedExpertTensors(config, layer, ExpertNaming::kPerExpert)) {
      tensors.push_back(DummyOf(spec));
    }
  }
  return tensors;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& directory,
                                                           const ModelConfig& config,
                                                           LoadFormat format) {
  if (format == LoadFormat::kAuto) return Checkpoint::Open(directory);
  return Checkpoint::Generate(directory, GeneratedTensors(config));
}

absl::StatusOr<OpenedModel> OpenModel(const std::string& directory, LoadFormat format) {
  OpenedModel out;
  // Files first: a directory that is none is named as such.
  if (format == LoadFormat::kAuto) {
    ASSIGN_OR_RETURN(out.checkpoint, Checkpoint::Open(directory));
  }
  ASSIGN_OR_RETURN(out.config, LoadModelConfig(directory));
  if (format == LoadFormat::kDummy) {
    ASSIGN_OR_RETURN(out.checkpoint, OpenCheckpoint(directory, out.config, format));
  }
  return out;
}

}  // namespace banyan
