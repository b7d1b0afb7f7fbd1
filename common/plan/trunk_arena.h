// Every piece of GPU memory that a decoder and its backend ask for: what the plan counts is what
// the decoder has its backend set aside before anything is loaded.
#pragma once

#include "common/config/model_config.h"
#include "common/plan/decoder_memory.h"
#include "common/plan/device_arena.h"
#include "common/plan/tensor_classes.h"

namespace banyan {

// `config`: of one device. `weights`: as options.trunk_format keeps them there.
DeviceArena TrunkArena(const ModelConfig& config, const DecoderOptions& options,
                       const TrunkWeightSizes& weights);

}  // namespace banyan
