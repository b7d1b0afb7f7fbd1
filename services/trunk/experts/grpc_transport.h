// Expert calls over gRPC streams, or through the memory that a stream's host shares: sends to all
// shards, collects, resends to another replica of the shard when a stream breaks or an answer is
// late.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "common/metrics/registry.h"
#include "services/trunk/experts/expert_directory.h"
#include "services/trunk/experts/expert_transport.h"

namespace banyan::trunk {

class GrpcTransport final : public ExpertTransport {
 public:
  struct Options {
    // Type of the partial sums on the wire, else bf16. It holds for every batch size: a row's bits
    // must not depend on the rows beside it. f32 by default: docs/adr/f32-on-the-wire.md.
    bool reply_f32 = true;
    // An answer later than this is asked of another replica as well; the first one counts. Rows of
    // this call and of the one that the shard computes before it.
    absl::Duration resend_after = absl::Milliseconds(100);
    absl::Duration resend_after_per_row = absl::Milliseconds(5);
    // After this the replicas asked are given up: their streams end and are opened anew.
    absl::Duration give_up_after = absl::Seconds(5);
    absl::Duration give_up_after_per_row = absl::Milliseconds(50);
  };

  // `directory` and `metrics` are borrowed. One transport per directory.
  GrpcTransport(const Options& options, ExpertDirectory* directory, MetricsRegistry* metrics);
  ~GrpcTransport() override;

  void LendRowsMemory(std::vector<std::shared_ptr<std::byte>> blocks, size_t block_bytes) override;
  std::byte* TakeRowsMemory() override;
  absl::Status Dispatch(const Batch& batch) override;
  absl::Status Combine(float* out) override;
  void Abandon() override;
  absl::Duration CombineTime() const override;
  absl::Status Ready() const override;
  absl::Status WaitReady(absl::Time deadline) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan::trunk
