// An executor with metrics of what its calls read.
#pragma once

#include "common/metrics/registry.h"
#include "services/expert/runtime/grouped_executor.h"

namespace banyan::expert {

class MeteredExecutor final : public ExpertExecutor {
 public:
  // Both borrowed.
  MeteredExecutor(GroupedExecutor& executor, MetricsRegistry& metrics);

  const ShardGeometry& geometry() const override { return executor_.geometry(); }
  absl::Status Run(const ExpertCall& call) override;

 private:
  GroupedExecutor& executor_;
  HotCounter& pairs_;
  HotCounter& experts_;
  HotCounter& weight_bytes_;
  prometheus::Counter& errors_;
};

}  // namespace banyan::expert
