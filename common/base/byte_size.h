// Sizes as people write them: "8GiB", "512MB", "1048576".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace banyan {

// A whole number or a decimal fraction, then nothing or B (bytes), KiB, MiB, GiB, TiB (powers of
// 1024), KB, MB, GB, TB (powers of 1000). kInvalidArgument for anything else, and beyond 2^62.
absl::StatusOr<uint64_t> ParseByteSize(std::string_view text);

// "1.50 GiB", "812 MiB", "17 B": three significant digits.
std::string FormatByteSize(uint64_t bytes);

}  // namespace banyan
