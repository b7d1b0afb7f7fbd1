// Checked access to small JSON files: config.json and its kin.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace banyan {

inline constexpr size_t kMaxConfigBytes = 16'000'000;

// The document as a tree. kInvalidArgument: malformed text (with line and column), a key that
// appears twice in one object, more than 64 levels, a document that is not an object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view source);

// A value for a message: short, printable.
std::string Describe(const nlohmann::json& value);

// One object of the tree, borrowed. `place` begins every message ("config.json",
// "cluster.json: shards[1]"). A key whose value is null counts as absent, as in Python's None.
// All errors are kInvalidArgument and name place, key, expected and found.
class JsonObject {
 public:
  JsonObject(const nlohmann::json& object, std::string place);

  // nullptr when the key is absent or null.
  const nlohmann::json* Find(std::string_view key) const;
  const std::string& place() const { return place_; }

  // Without a default the key is required. Integers are JSON integers: 4.0, "4" and true are not.
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t min, int64_t max,
                              std::optional<int64_t> default_value = std::nullopt) const;
  // Any JSON number within [min, max].
  absl::StatusOr<double> Number(std::string_view key, double min, double max,
                                std::optional<double> default_value = std::nullopt) const;
  absl::StatusOr<bool> Bool(std::string_view key, bool default_value) const;
  // Absent: an empty string.
  absl::StatusOr<std::string> String(std::string_view key) const;
  // Absent: an empty list. A single integer counts as a list of one where `allow_single`.
  absl::StatusOr<std::vector<int32_t>> IntList(std::string_view key, int64_t min, int64_t max,
                                               bool allow_single) const;

  absl::Status Error(std::string_view key, std::string_view problem) const;

 private:
  const nlohmann::json& object_;
  std::string place_;
};

}  // namespace banyan
