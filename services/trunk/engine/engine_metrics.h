// What the engine tells Prometheus: requests, queue, latencies, tokens, state in use, step time.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "common/metrics/registry.h"

namespace banyan::trunk {

// Families banyan_trunk_*, made once from the registry (docs/metrics.md). Thread-safe.
struct EngineMetrics {
  explicit EngineMetrics(MetricsRegistry* registry);

  // banyan_trunk_requests_total by outcome.
  prometheus::Counter& stopped;
  prometheus::Counter& length;
  prometheus::Counter& cancelled;
  prometheus::Counter& deadline_exceeded;
  prometheus::Counter& unavailable;
  prometheus::Counter& internal;
  prometheus::Counter& refused_queue_full;
  prometheus::Counter& refused_invalid;
  prometheus::Counter& refused_draining;

  prometheus::Gauge& queued_requests;
  prometheus::Gauge& running_requests;
  prometheus::Gauge& kv_pages;
  prometheus::Gauge& kv_pages_used;
  prometheus::Gauge& slots;
  prometheus::Gauge& slots_used;
  prometheus::Gauge& queue_limit;
  prometheus::Gauge& batch_limit;

  prometheus::Histogram& queue_seconds;
  prometheus::Histogram& ttft_seconds;
  prometheus::Histogram& itl_seconds;
  prometheus::Histogram& request_seconds;

  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generated_tokens;
  prometheus::Counter& prefill_rows;
  prometheus::Counter& decode_rows;
  prometheus::Counter& recompute_rows;

  prometheus::Histogram& batch_rows;
  prometheus::Histogram& batch_sequences;
  prometheus::Counter& weight_bytes;
  prometheus::Counter& prompt_expert_bytes;
  prometheus::Counter& steps;
  prometheus::Counter& failed_steps;
  prometheus::Counter& preemptions_for_pages;
  prometheus::Counter& preemptions_for_experts;
  prometheus::Gauge& waiting_for_experts;
  prometheus::Counter& expert_outage_seconds;

  // banyan_trunk_step_phase_seconds_total by phase.
  prometheus::Counter& schedule_seconds;
  prometheus::Counter& forward_seconds;  // without the experts, if the transport tells their part
  prometheus::Counter& experts_seconds;
  prometheus::Counter& logits_seconds;
  prometheus::Counter& sampling_seconds;
  prometheus::Counter& publish_seconds;
  prometheus::Histogram& step_seconds;  // whole steps
};

// Counters refuse negative amounts; a wall clock may step back.
void AddSeconds(prometheus::Counter* counter, absl::Duration duration);
void ObserveSeconds(prometheus::Histogram* histogram, absl::Duration duration);

}  // namespace banyan::trunk
