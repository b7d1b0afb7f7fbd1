#include "services/trunk/experts/lent_pool.h"

#include <optional>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/pack_segment.h"

namespace banyan::trunk {
namespace {

constexpr char kName[] = "lent pool";  // in messages: it has no path here

absl::Status CheckModel(const ExpertPackHeader& pool, const ExpectedModel& model) {
  if (pool.fingerprint != model.fingerprint) {
    return FailedPreconditionF("{}: of the model with fingerprint {}, expected {}", kName,
                               pool.fingerprint, model.fingerprint);
  }
  struct Size {
    const char* name;
    int32_t found;
    int32_t expected;
  };
  for (const Size& size :
       {Size{"num_layers", pool.num_layers, model.num_layers},
        Size{"num_experts", pool.num_experts, model.num_experts},
        Size{"hidden_size", pool.hidden_size, model.hidden_size},
        Size{"moe_intermediate_size", pool.moe_intermediate_size, model.moe_intermediate_size}}) {
    if (size.found != size.expected) {
      return FailedPreconditionF("{}: {} {}, expected {}", kName, size.name, size.found,
                                 size.expected);
    }
  }
  if (pool.moe_layers != model.moe_layers) {
    return FailedPreconditionF("{}: routed experts in layers {}, expected {}", kName,
                               fmt::join(pool.moe_layers, " "), fmt::join(model.moe_layers, " "));
  }
  return absl::OkStatus();
}

absl::Status CheckShard(const ExpertPackHeader& pool, int32_t shard, int32_t num_shards) {
  if (pool.shard_index == shard && pool.num_shards == num_shards) return absl::OkStatus();
  return FailedPreconditionF("{}: shard {} of {}, expected {} of {}", kName, pool.shard_index,
                             pool.num_shards, shard, num_shards);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LentPool>> LentPool::Open(FileDescriptor file,
                                                         const ExpectedModel& model, int32_t shard,
                                                         int32_t num_shards) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::OfDescriptor(std::move(file), kName));
  const uint64_t pack_bytes = PackBytesOfSegment(mapped).value_or(mapped.bytes().size());
  ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadExpertPackHeader(mapped));
  ASSIGN_OR_RETURN(ExpertPackHeader header, ParseExpertPackHeader(bytes, pack_bytes, kName));
  RETURN_IF_ERROR(CheckModel(header, model));
  RETURN_IF_ERROR(CheckShard(header, shard, num_shards));
  return std::unique_ptr<LentPool>(new LentPool(std::move(mapped), std::move(header)));
}

LentPool::LentPool(MappedFile file, ExpertPackHeader header)
    : file_(std::move(file)), header_(std::move(header)), layout_(LayoutOf(header_)) {}

const std::byte* LentPool::Expert(int64_t moe_layer_index, int32_t expert) const {
  DCHECK(moe_layer_index >= 0 && moe_layer_index < static_cast<int64_t>(header_.moe_layers.size()));
  const int32_t at = expert - header_.first_expert;
  DCHECK(at >= 0 && at < header_.num_shard_experts);
  return file_.bytes().data() +
         layout_.ExpertOffset(moe_layer_index * header_.num_shard_experts + at);
}

std::span<const std::byte> LentPool::Payload() const {
  return file_.bytes().subspan(static_cast<size_t>(layout_.payload_offset),
                               static_cast<size_t>(layout_.file_bytes - layout_.payload_offset));
}

}  // namespace banyan::trunk
