#include "common/config/cluster_config.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/json_object.h"
#include "common/io/mapped_file.h"

namespace banyan {
namespace {

constexpr size_t kMaxShards = 1024;
constexpr size_t kMaxReplicas = 64;
constexpr size_t kMaxUnixPathBytes = 107;  // sun_path with its terminator has 108

// Every key of OBJECT is in KNOWN.
absl::Status CheckKeys(const nlohmann::json& object, std::string_view place,
                       std::string_view known) {
  for (const auto& item : object.items()) {
    if (item.key() != known) {
      return InvalidArgumentF("{}: unknown key '{}', expected '{}'", place, Printable(item.key()),
                              known);
    }
  }
  return absl::OkStatus();
}

// The list under KEY, not empty.
absl::StatusOr<const nlohmann::json*> NonEmptyList(const nlohmann::json& object,
                                                   std::string_view key, size_t max_size,
                                                   std::string_view place) {
  const auto found = object.find(key);
  if (found == object.end()) return InvalidArgumentF("{}: key '{}' is missing", place, key);
  if (!found->is_array() || found->empty()) {
    return InvalidArgumentF("{}: {} is {}, expected a list with at least one entry", place, key,
                            Describe(*found));
  }
  if (found->size() > max_size) {
    return InvalidArgumentF("{}: {} has {} entries, expected at most {}", place, key, found->size(),
                            max_size);
  }
  return &*found;
}

bool IsHostChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_';
}

// "name:50061", "10.0.0.7:50061", "[::1]:50061"
bool IsHostPort(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return false;
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    if (host.find_first_not_of("0123456789abcdefABCDEF:.%") != std::string_view::npos) return false;
  } else {
    if (host.empty()) return false;
    for (char c : host) {
      if (!IsHostChar(c)) return false;
    }
  }
  if (port.empty() || port.size() > 5 ||
      port.find_first_not_of("0123456789") != std::string_view::npos) {
    return false;
  }
  const int number = std::stoi(std::string(port));
  return number >= 1 && number <= 65535;
}

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// "" or what is wrong with it.
std::string_view AddressProblem(std::string_view address) {
  if (StartsWith(address, "unix:")) {
    std::string_view path = address.substr(5);
    if (StartsWith(path, "//")) {
      path.remove_prefix(2);
      if (path.empty() || path.front() != '/') return "unix:// needs an absolute path";
    }
    if (path.empty()) return "unix: needs a path";
    if (path.size() > kMaxUnixPathBytes) return "the path is longer than 107 bytes";
    if (path.find('\0') != std::string_view::npos) return "the path has a zero byte";
    return "";
  }
  if (StartsWith(address, "dns:///")) address.remove_prefix(7);
  if (IsHostPort(address)) return "";
  return "expected HOST:PORT, [IPV6]:PORT, dns:///HOST:PORT or unix:PATH";
}

}  // namespace

bool AllOnUnixSockets(const ClusterConfig& cluster) {
  for (const ClusterConfig::Shard& shard : cluster.shards) {
    for (const std::string& replica : shard.replicas) {
      if (replica.compare(0, 5, "unix:") != 0) return false;
    }
  }
  return true;
}

absl::StatusOr<ClusterConfig> ParseClusterConfig(std::string_view json, std::string_view source) {
  ASSIGN_OR_RETURN(const nlohmann::json document, ParseJsonObject(json, source));
  RETURN_IF_ERROR(CheckKeys(document, source, "shards"));
  ASSIGN_OR_RETURN(const nlohmann::json* const shards,
                   NonEmptyList(document, "shards", kMaxShards, source));
  ClusterConfig config;
  std::map<std::string, std::string> places;  // of addresses already seen
  for (size_t i = 0; i < shards->size(); ++i) {
    const std::string place = fmt::format("{}: shards[{}]", source, i);
    const nlohmann::json& shard = (*shards)[i];
    if (!shard.is_object()) {
      return InvalidArgumentF("{}: is {}, expected an object", place, Describe(shard));
    }
    RETURN_IF_ERROR(CheckKeys(shard, place, "replicas"));
    ASSIGN_OR_RETURN(const nlohmann::json* const replicas,
                     NonEmptyList(shard, "replicas", kMaxReplicas, place));
    ClusterConfig::Shard& out = config.shards.emplace_back();
    for (size_t j = 0; j < replicas->size(); ++j) {
      const nlohmann::json& replica = (*replicas)[j];
      const std::string where = fmt::format("shards[{}].replicas[{}]", i, j);
      if (!replica.is_string()) {
        return InvalidArgumentF("{}: {} is {}, expected an address", source, where,
                                Describe(replica));
      }
      const std::string address = replica.get<std::string>();
      if (const std::string_view problem = AddressProblem(address); !problem.empty()) {
        return InvalidArgumentF("{}: {}: address '{}': {}", source, where, Printable(address),
                                problem);
      }
      const auto [seen, is_new] = places.emplace(address, where);
      if (!is_new) {
        return InvalidArgumentF("{}: {}: address '{}' is also {}", source, where,
                                Printable(address), seen->second);
      }
      out.replicas.push_back(address);
    }
  }
  return config;
}

absl::StatusOr<ClusterConfig> LoadClusterConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  return ParseClusterConfig(text, path);
}

}  // namespace banyan
