#include "common/plan/prefill_halves.h"

#include <charconv>

#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr int32_t kMostRows = 65536;

}  // namespace

absl::StatusOr<int32_t> ParsePrefillHalves(std::string_view text, bool on_gpu, bool in_memory) {
  if (text == "auto") {
    return !on_gpu ? 0 : in_memory ? kLeastHalvedRowsInMemory : kLeastHalvedRows;
  }
  if (text == "off") return 0;
  int32_t rows = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rows);
  if (error != std::errc() || end != text.data() + text.size() || rows < 2 || rows > kMostRows) {
    return InvalidArgumentF("--prefill_halves '{}': expected auto, off or 2 to {} rows",
                            Printable(text), kMostRows);
  }
  return rows;
}

}  // namespace banyan
