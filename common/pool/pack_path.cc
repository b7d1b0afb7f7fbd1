#include "common/pool/pack_path.h"

#include <unistd.h>

#include <cstdlib>
#include <optional>

#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr char kStateDir[] = "/var/lib/banyan";

}  // namespace

std::string PackDirectory(const std::string& pool_dir, std::string_view fingerprint) {
  return fmt::format("{}/{}", pool_dir, fingerprint);
}

std::string PackPath(const std::string& pool_dir, std::string_view fingerprint, PoolFormat format,
                     const ShardSpec& shard) {
  return fmt::format("{}/{}-{}.pack", PackDirectory(pool_dir, fingerprint), PoolFormatName(format),
                     ShardText(shard));
}

std::string TrunkPackPath(const std::string& pool_dir, std::string_view fingerprint,
                          std::string_view format) {
  return fmt::format("{}/trunk-{}.pack", PackDirectory(pool_dir, fingerprint), format);
}

std::string DefaultPoolDir() {
  if (access(kStateDir, W_OK | X_OK) == 0) return fmt::format("{}/packs", kStateDir);
  const char* const cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return fmt::format("{}/banyan", cache);
  const char* const home = std::getenv("HOME");
  if (home != nullptr && *home == '/') return fmt::format("{}/.cache/banyan", home);
  return "";
}

absl::StatusOr<PoolFormat> ParsePoolFormatFlag(std::string_view name) {
  if (const std::optional<PoolFormat> format = ParsePoolFormat(name)) return *format;
  return InvalidArgumentF("'{}': expected bf16, int8, nf4 or int4", Printable(name));
}

}  // namespace banyan
