// Decides whether the part of tokenizer.json other than vocabulary and merges asks for anything
// this tokenizer does not do.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "common/tokenizer/tokenizer_json.h"

namespace banyan {

// Reads added tokens and the normalizer of `root` into `out`. Messages begin with the field's path.
absl::Status ReadTokenizerFeatures(const nlohmann::json& root, TokenizerJson& out);

}  // namespace banyan
