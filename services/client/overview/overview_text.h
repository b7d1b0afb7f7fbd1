// An overview as lines for a person.
#pragma once

#include <string>
#include <vector>

#include "services/client/overview/overview.h"

namespace banyan::client {

// The whole story, top to bottom: is it well, how fast, why slow, how full, what loads, what went
// wrong. Lines of ASCII without control characters, at most `columns` wide.
std::vector<std::string> OverviewLines(const Overview& overview, int columns);

// The same in one line, for logs and pipes.
std::string OverviewLine(const Overview& overview);

}  // namespace banyan::client
