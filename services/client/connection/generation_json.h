// Answers and their events as JSON for scripts; field names are those of inference.proto.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "services/client/connection/generation.h"

namespace banyan::client {

nlohmann::ordered_json EventJson(const inference::v1::GenerateResponse& event);
// The whole answer and "time_to_first_token_seconds", "tokens_per_second" by the client's clock.
nlohmann::ordered_json GenerationJson(const Generation& generation);

}  // namespace banyan::client
