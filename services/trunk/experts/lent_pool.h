// The expert pool of a host on this machine, read where that host has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "common/base/file_descriptor.h"
#include "common/io/expert_pack.h"
#include "common/io/mapped_file.h"
#include "services/trunk/experts/cluster_check.h"

namespace banyan::trunk {

// A pack or its segment of shared memory (docs/formats/expert_pack.md), mapped for reading: memory
// that the host has too, counted once. The file keeps its bytes when the host ends or the pack is
// replaced under its name. Its size is checked once: somebody who truncates it later takes pages
// away, and the next touch of one ends this process with a line that names the pool
// (common/io/mapping_fault.h), as with a pack that a host maps. Immutable; thread-safe.
class LentPool {
 public:
  // `file`: of ExpertDirectory::BorrowPool for this shard. No expert is touched, no checksum of one
  // compared: the host that lends it serves the same bytes. Errors of MappedFile::OfDescriptor and
  // ParseExpertPackHeader; kFailedPrecondition: another model or another shard, with what was found
  // and expected.
  static absl::StatusOr<std::unique_ptr<LentPool>> Open(FileDescriptor file,
                                                        const ExpectedModel& model, int32_t shard,
                                                        int32_t num_shards);
  LentPool(const LentPool&) = delete;
  LentPool& operator=(const LentPool&) = delete;

  const ExpertPackHeader& header() const { return header_; }
  const ExpertPackLayout& layout() const { return layout_; }

  // layout().expert_bytes bytes: gate, up, down, at layout().gate_bytes and twice that.
  //   moe_layer_index  place in header().moe_layers
  //   expert           of that layer, one of header().num_shard_experts from first_expert on
  const std::byte* Expert(int64_t moe_layer_index, int32_t expert) const;
  // All experts, layer after layer; begins with a huge page (2 MiB) of the file.
  std::span<const std::byte> Payload() const;

 private:
  LentPool(MappedFile file, ExpertPackHeader header);

  const MappedFile file_;
  const ExpertPackHeader header_;
  const ExpertPackLayout layout_;
};

}  // namespace banyan::trunk
