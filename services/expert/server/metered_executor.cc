#include "services/expert/server/metered_executor.h"

#include "common/base/status_macros.h"

namespace banyan::expert {

MeteredExecutor::MeteredExecutor(GroupedExecutor& executor, MetricsRegistry& metrics)
    : executor_(executor),
      pairs_(metrics.HotCounter("banyan_expert_row_expert_pairs_total",
                                "Expert evaluations: (row, expert) pairs of the calls answered.")),
      experts_(
          metrics.HotCounter("banyan_expert_experts_read_total",
                             "Distinct experts whose weights a call read, summed over calls.")),
      weight_bytes_(metrics.HotCounter("banyan_expert_weight_bytes_total",
                                       "Bytes of weights read for the calls answered.")),
      errors_(metrics.Counter("banyan_expert_call_errors_total",
                              "Calls refused for what they asked: layer, ids, weights, sizes.")) {}

absl::Status MeteredExecutor::Run(const ExpertCall& call) {
  if (absl::Status status = executor_.Run(call); !status.ok()) {
    errors_.Increment();
    return status;
  }
  const GroupedExecutor::CallStats& stats = executor_.last_call();
  pairs_.Increment(static_cast<double>(stats.num_pairs));
  experts_.Increment(static_cast<double>(stats.num_experts));
  weight_bytes_.Increment(static_cast<double>(stats.weight_bytes));
  return absl::OkStatus();
}

}  // namespace banyan::expert
