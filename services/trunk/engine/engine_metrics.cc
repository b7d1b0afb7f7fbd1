#include "services/trunk/engine/engine_metrics.h"

#include <algorithm>
#include <string>
#include <vector>

namespace banyan::trunk {
namespace {

prometheus::Counter& Outcome(MetricsRegistry* registry, const std::string& outcome) {
  return registry->Counter("banyan_trunk_requests_total", "Requests by how they ended.",
                           {{"outcome", outcome}});
}

prometheus::Counter& Tokens(MetricsRegistry* registry, const std::string& kind) {
  return registry->Counter("banyan_trunk_step_rows_total",
                           "Rows that went through the model: decode, prefill, and generated "
                           "tokens recomputed after a preemption.",
                           {{"kind", kind}});
}

prometheus::Counter& Preemptions(MetricsRegistry* registry, const std::string& reason) {
  return registry->Counter("banyan_trunk_preemptions_total",
                           "Sequences whose state was given up, to be recomputed.",
                           {{"reason", reason}});
}

prometheus::Counter& Phase(MetricsRegistry* registry, const std::string& phase) {
  return registry->Counter("banyan_trunk_step_phase_seconds_total",
                           "Time of the step loop by phase; experts is the wait for shards.",
                           {{"phase", phase}});
}

const std::vector<double>& PowersOfTwo() {
  static const auto& bounds =
      *new std::vector<double>{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
  return bounds;
}

}  // namespace

EngineMetrics::EngineMetrics(MetricsRegistry* registry)
    : stopped(Outcome(registry, "stop")),
      length(Outcome(registry, "length")),
      cancelled(Outcome(registry, "cancelled")),
      deadline_exceeded(Outcome(registry, "deadline_exceeded")),
      unavailable(Outcome(registry, "unavailable")),
      internal(Outcome(registry, "internal")),
      refused_queue_full(Outcome(registry, "refused_queue_full")),
      refused_invalid(Outcome(registry, "refused_invalid")),
      refused_draining(Outcome(registry, "refused_draining")),
      queued_requests(registry->Gauge("banyan_trunk_queued_requests",
                                      "Requests that have not had their first step.")),
      running_requests(registry->Gauge("banyan_trunk_running_requests",
                                       "Requests that had their first step and have not ended.")),
      kv_pages(registry->Gauge("banyan_trunk_kv_pages", "KV pages of 64 tokens.")),
      kv_pages_used(registry->Gauge("banyan_trunk_kv_pages_used", "KV pages in use.")),
      slots(registry->Gauge("banyan_trunk_recurrent_slots", "Recurrent-state slots.")),
      slots_used(
          registry->Gauge("banyan_trunk_recurrent_slots_used", "Recurrent-state slots in use.")),
      queue_limit(registry->Gauge("banyan_trunk_queue_limit_requests",
                                  "Requests that may wait; further ones are refused.")),
      batch_limit(registry->Gauge("banyan_trunk_batch_limit_rows", "Rows that a step may have.")),
      queue_seconds(registry->Histogram("banyan_trunk_queue_seconds",
                                        "From submission to the first step.", LatencyBuckets())),
      ttft_seconds(registry->Histogram("banyan_trunk_ttft_seconds",
                                       "From submission to the first token.", LatencyBuckets())),
      itl_seconds(registry->Histogram("banyan_trunk_itl_seconds",
                                      "Between two tokens of a request.", LatencyBuckets())),
      request_seconds(registry->Histogram("banyan_trunk_request_seconds",
                                          "From submission to the end.", LatencyBuckets())),
      prompt_tokens(registry->Counter("banyan_trunk_prompt_tokens_total",
                                      "Prompt tokens of requests that had their first step.")),
      generated_tokens(registry->Counter("banyan_trunk_generated_tokens_total", "Tokens chosen.")),
      prefill_rows(Tokens(registry, "prefill")),
      decode_rows(Tokens(registry, "decode")),
      recompute_rows(Tokens(registry, "recompute")),
      batch_rows(registry->Histogram("banyan_trunk_batch_rows", "Rows of a step.", PowersOfTwo())),
      batch_sequences(registry->Histogram("banyan_trunk_batch_sequences", "Sequences of a step.",
                                          PowersOfTwo())),
      weight_bytes(registry->Counter("banyan_trunk_weight_bytes_total",
                                     "Bytes of the trunk's weights read by the steps; a matrix "
                                     "counts once a step, however many rows that has.")),
      prompt_expert_bytes(
          registry->Counter("banyan_trunk_prompt_expert_bytes_total",
                            "Bytes of routed experts' weights that the trunk read from the hosts' "
                            "pool for long prompts; an expert counts once a step and layer.")),
      steps(registry->Counter("banyan_trunk_steps_total", "Steps run.")),
      failed_steps(registry->Counter("banyan_trunk_failed_steps_total",
                                     "Steps whose forward pass returned an error.")),
      preemptions_for_pages(Preemptions(registry, "pages")),
      preemptions_for_experts(Preemptions(registry, "experts")),
      waiting_for_experts(registry->Gauge("banyan_trunk_waiting_for_experts",
                                          "1 from the loss of a shard until a step runs again.")),
      expert_outage_seconds(registry->Counter("banyan_trunk_expert_outage_seconds_total",
                                              "Time without a usable replica of some shard.")),
      schedule_seconds(Phase(registry, "schedule")),
      forward_seconds(Phase(registry, "forward")),
      experts_seconds(Phase(registry, "experts")),
      logits_seconds(Phase(registry, "logits")),
      sampling_seconds(Phase(registry, "sampling")),
      publish_seconds(Phase(registry, "publish")),
      step_seconds(registry->Histogram("banyan_trunk_step_seconds",
                                       "Whole steps, from scheduling to publishing.",
                                       LatencyBuckets())) {}

void AddSeconds(prometheus::Counter* counter, absl::Duration duration) {
  counter->Increment(std::max(0.0, absl::ToDoubleSeconds(duration)));
}

void ObserveSeconds(prometheus::Histogram* histogram, absl::Duration duration) {
  histogram->Observe(std::max(0.0, absl::ToDoubleSeconds(duration)));
}

}  // namespace banyan::trunk
