// Where config.json and the tensors cannot both be right, said in the terms of config.json.
#pragma once

#include <string>

#include "common/config/model_config.h"
#include "common/io/checkpoint.h"

namespace banyan {

// "num_hidden_layers is 80, but the tensors are of 48 layers (the last: model.layers.47...., in
// model-00009-of-00009.safetensors)"; several joined by "; ", each with key, both values and where
// the tensors' one was found. "" when counts and widths agree; single tensors may be missing still.
std::string FindContradictions(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace banyan
