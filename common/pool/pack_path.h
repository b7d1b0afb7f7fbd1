// Where packs lie: POOL_DIR/<fingerprint>/<format>-<shard>.pack, and trunk-<format>.pack.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/pool/shard.h"
#include "common/quant/pool_format.h"

namespace banyan {

std::string PackDirectory(const std::string& pool_dir, std::string_view fingerprint);

// ".../int8-width-0of2.pack"
std::string PackPath(const std::string& pool_dir, std::string_view fingerprint, PoolFormat format,
                     const ShardSpec& shard);

// ".../trunk-bf16.pack"; `format` as in --trunk_format.
std::string TrunkPackPath(const std::string& pool_dir, std::string_view fingerprint,
                          std::string_view format);

// /var/lib/banyan/packs where /var/lib/banyan is writable, else $XDG_CACHE_HOME/banyan or
// $HOME/.cache/banyan; "" when the environment names no home. For *_options.cc and the client's
// verbs only: it reads the environment.
std::string DefaultPoolDir();

// --pool_format int8, nf4, int4, bf16; kInvalidArgument.
absl::StatusOr<PoolFormat> ParsePoolFormatFlag(std::string_view name);

}  // namespace banyan
