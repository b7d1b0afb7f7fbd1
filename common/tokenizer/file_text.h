// A whole small file as a string.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace banyan {

// kNotFound when there is no such file; kInvalidArgument when it is larger than 256 MiB or not a
// plain file; kInternal with errno's text when reading fails.
absl::StatusOr<std::string> ReadFileText(const std::string& path);

}  // namespace banyan
