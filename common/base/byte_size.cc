#include "common/base/byte_size.h"

#include <charconv>
#include <cmath>

#include "common/base/strings.h"

namespace banyan {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};

constexpr Unit kUnits[] = {
    {"", 1},
    {"B", 1},
    {"KiB", 1024.0},
    {"MiB", 1048576},
    {"GiB", 1073741824},
    {"TiB", 1099511627776},
    {"KB", 1e3},
    {"MB", 1e6},
    {"GB", 1e9},
    {"TB", 1e12},
};

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(std::string_view text) {
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error == std::errc() && std::isfinite(number) && number >= 0 && text.front() != '-') {
    for (const Unit& unit : kUnits) {
      if (unit.name != std::string_view(rest, static_cast<size_t>(end - rest))) continue;
      const double bytes = number * unit.bytes;
      if (bytes > 0x1p62) break;
      return static_cast<uint64_t>(std::llround(bytes));
    }
  }
  return InvalidArgumentF("size '{}': expected a number of bytes such as 8GiB, 512MiB or 1048576",
                          Printable(text, 40));
}

std::string FormatByteSize(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  constexpr const char* kNames[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(kNames)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, kNames[unit]);
}

}  // namespace banyan
