// What requests are measured against: facts of the loaded model and of this server's limits.
#pragma once

#include <cstdint>
#include <vector>

#include "common/config/generation_config.h"
#include "common/tokenizer/text_codec.h"

namespace banyan::trunk {

// Immutable once the model is loaded.
struct ModelFacts {
  int32_t vocab_size = 0;
  int32_t max_context_tokens = 0;  // prompt and answer together
  GenerationConfig defaults;       // generation_config.json
  // End tokens of config.json and generation_config.json, each once.
  std::vector<int32_t> eos_token_ids;
  const TextCodec* codec = nullptr;  // null: the checkpoint has no tokenizer
};

}  // namespace banyan::trunk
