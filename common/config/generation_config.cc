#include "common/config/generation_config.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/json_object.h"
#include "common/io/mapped_file.h"

namespace banyan {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

absl::Status ReadFloat(const JsonObject& root, std::string_view key, double min, double max,
                       std::optional<float>* out) {
  if (root.Find(key) == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const double value, root.Number(key, min, max));
  *out = static_cast<float>(value);
  return absl::OkStatus();
}

absl::Status ReadInt(const JsonObject& root, std::string_view key, int64_t min,
                     std::optional<int32_t>* out) {
  if (root.Find(key) == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t value, root.Int(key, min, kMaxInt32));
  *out = static_cast<int32_t>(value);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(std::string_view json,
                                                       std::string_view source) {
  ASSIGN_OR_RETURN(const nlohmann::json document, ParseJsonObject(json, source));
  const JsonObject root(document, std::string(source));
  // The smallest float above 0: a probability mass or a divisor must not become 0.
  constexpr double kTiny = std::numeric_limits<float>::min();
  GenerationConfig config;
  RETURN_IF_ERROR(ReadFloat(root, "temperature", 0.0, 1e6, &config.temperature));
  RETURN_IF_ERROR(ReadInt(root, "top_k", 0, &config.top_k));
  RETURN_IF_ERROR(ReadFloat(root, "top_p", kTiny, 1.0, &config.top_p));
  RETURN_IF_ERROR(ReadFloat(root, "min_p", 0.0, 1.0, &config.min_p));
  RETURN_IF_ERROR(ReadFloat(root, "repetition_penalty", kTiny, 1e6, &config.repetition_penalty));
  RETURN_IF_ERROR(ReadInt(root, "max_new_tokens", 1, &config.max_new_tokens));
  ASSIGN_OR_RETURN(config.eos_token_ids,
                   root.IntList("eos_token_id", 0, kMaxInt32, /*allow_single=*/true));
  ASSIGN_OR_RETURN(const bool do_sample, root.Bool("do_sample", true));
  if (!do_sample) config.temperature = 0.0f;
  return config;
}

absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& directory) {
  const std::string path = directory + "/generation_config.json";
  const absl::StatusOr<std::string> text = ReadTextFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return GenerationConfig();
  if (!text.ok()) return text.status();
  return ParseGenerationConfig(*text, path);
}

}  // namespace banyan
