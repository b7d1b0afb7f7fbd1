// JSON that a client wrote, as a document with its order of keys kept.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace banyan {

// Copying and destroying a document recurse, and an ordered object looks through all keys for each
// one: both limits keep small texts from costing a lot.
inline constexpr size_t kMaxJsonDepth = 100;
inline constexpr size_t kMaxJsonKeys = 1024;  // of one object

// kInvalidArgument: what is wrong and at which byte, or which limit was passed.
absl::StatusOr<nlohmann::ordered_json> ParseUntrustedJson(std::string_view text);

}  // namespace banyan
