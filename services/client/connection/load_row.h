// A service's report of its load as a line of ProgressView.
#pragma once

#include <string>

#include "proto/common/v1/load.pb.h"
#include "services/client/terminal/progress_view.h"

namespace banyan::client {

LoadRow LoadRowOf(const std::string& name, const common::v1::LoadProgress& progress);

}  // namespace banyan::client
