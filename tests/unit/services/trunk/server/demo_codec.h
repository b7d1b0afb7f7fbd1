// The demo model's tokenizer and template, read once for all tests of this program.
#pragma once

#include <memory>
#include <string>

#include "common/base/check.h"
#include "common/tokenizer/text_codec.h"
#include "services/trunk/server/model_facts.h"

namespace banyan::trunk {

inline const TextCodec& DemoCodec() {
  static const TextCodec* const codec = [] {
    auto loaded = TextCodec::Load(BANYAN_SOURCE_DIR "/deploy/models/demo");
    CHECK(loaded.ok());
    return loaded->release();
  }();
  return *codec;
}

inline ModelFacts DemoFacts() {
  ModelFacts facts;
  facts.vocab_size = 1024;
  facts.max_context_tokens = 256;
  facts.defaults.temperature = 0.7f;
  facts.defaults.top_k = 20;
  facts.defaults.top_p = 0.8f;
  facts.eos_token_ids = {1002, 1000};
  facts.codec = &DemoCodec();
  return facts;
}

}  // namespace banyan::trunk
