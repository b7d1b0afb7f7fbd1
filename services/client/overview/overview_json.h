// An overview for scripts.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "services/client/overview/overview.h"

namespace banyan::client {

// Times in seconds, rates per second, shares 0..1. Percentiles of nothing are null; so is what
// could not be read.
nlohmann::ordered_json OverviewJson(const Overview& overview);

}  // namespace banyan::client
