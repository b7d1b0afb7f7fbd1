#include "services/expert/server/call_runner.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/trace_context.h"

namespace banyan::expert {
namespace {

uint32_t ClampedNs(CallRunner::Clock::duration duration) {
  const int64_t ns = std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(ns, 0, std::numeric_limits<uint32_t>::max()));
}

double Seconds(CallRunner::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// A line for every request that the trunk says has joined; the names have been checked.
void LogJoined(const CallOrigin& origin, const ForwardRequestView& request) {
  if (!LogEnabled(LogLevel::kInfo)) return;
  const absl::StatusOr<std::vector<TraceEntry>> entries = ParseTrace(request.trace);
  CHECK(entries.ok());
  for (const TraceEntry& entry : *entries) {
    LogInfo("request_joined", {{"request_id", entry.request_id},
                               {"trace_id", LogValue::NonEmpty(TraceId(entry.traceparent))},
                               {"step", request.header.step},
                               {"layer", request.header.layer},
                               {"attempt", request.header.attempt},
                               {"peer", origin.peer}});
  }
}

}  // namespace

CallRunner::CallRunner(MetricsRegistry& metrics)
    : calls_(metrics.HotCounter("banyan_expert_calls_total", "Expert calls answered.")),
      rows_(metrics.HotCounter("banyan_expert_rows_total", "Rows of the calls answered.")),
      refused_(metrics.Counter("banyan_expert_frames_refused_total",
                               "Frames that broke a rule and ended their stream.")),
      queue_(metrics.HotHistogram("banyan_expert_call_queue_seconds",
                                  "From a frame's arrival to the start of its computation.",
                                  LatencyBuckets())),
      compute_(metrics.HotHistogram("banyan_expert_call_compute_seconds",
                                    "Computation of one expert call.", LatencyBuckets())) {}

void CallRunner::SetExecutor(ExpertExecutor* executor) {
  executor_.store(executor, std::memory_order_release);
}

absl::StatusOr<ForwardResponseHeader> CallRunner::Run(
    const ForwardRequestView& request, Clock::time_point arrival, CallOrigin* origin,
    absl::FunctionRef<std::byte*(size_t bytes)> out) {
  absl::StatusOr<ForwardResponseHeader> answer = Answer(request, arrival, origin, out);
  if (!answer.ok()) CountRefused(*origin, answer.status());
  return answer;
}

void CallRunner::CountRefused(const CallOrigin& origin, const absl::Status& status) {
  refused_.Increment();
  LogWarning("forward_refused", {{"peer", origin.peer}, {"reason", status.message()}});
}

absl::StatusOr<ForwardResponseHeader> CallRunner::Answer(
    const ForwardRequestView& request, Clock::time_point arrival, CallOrigin* origin,
    absl::FunctionRef<std::byte*(size_t bytes)> out) {
  const ForwardRequestHeader& header = request.header;
  const ShardGeometry& geometry = executor()->geometry();
  if (origin->last_sequence.has_value() && header.sequence <= *origin->last_sequence) {
    return InvalidArgumentF("ForwardRequest sequence {} after {}: expected it to grow",
                            header.sequence, *origin->last_sequence);
  }
  origin->last_sequence = header.sequence;
  // Checked here as well as by the executor: the reply's memory follows from the row count.
  if (header.num_rows > static_cast<uint32_t>(geometry.max_rows)) {
    return InvalidArgumentF("ForwardRequest num_rows {}: expected 1 to {}", header.num_rows,
                            geometry.max_rows);
  }
  if (header.layer > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return InvalidArgumentF("ForwardRequest layer {}: expected 0 to {}", header.layer,
                            geometry.num_layers - 1);
  }
  const size_t reply_bytes = size_t{header.num_rows} * static_cast<size_t>(geometry.hidden_size) *
                             ReplyBytes(header.flags);
  const auto type = [&](ForwardFlags f32) {
    return (header.flags & f32) != 0 ? ActivationType::kF32 : ActivationType::kBF16;
  };
  const ExpertCall call{.layer = static_cast<int32_t>(header.layer),
                        .num_rows = static_cast<int32_t>(header.num_rows),
                        .top_k = static_cast<int32_t>(header.top_k),
                        .expert_ids = request.expert_ids.data(),
                        .weights = request.weights.data(),
                        .activations = request.activations.data(),
                        .activation_type = type(kActivationsF32),
                        .out = out(reply_bytes),
                        .reply_type = type(kReplyF32)};
  Clock::time_point start;
  {
    const absl::MutexLock lock(&running_);
    start = Clock::now();
    RETURN_IF_ERROR(executor()->Run(call));
  }
  const Clock::time_point done = Clock::now();

  if (!request.trace.empty()) LogJoined(*origin, request);
  calls_.Increment();
  rows_.Increment(header.num_rows);
  queue_.Observe(Seconds(start - arrival));
  compute_.Observe(Seconds(done - start));
  return ForwardResponseHeader{.sequence = header.sequence,
                               .num_rows = header.num_rows,
                               .flags = header.flags & kReplyF32,
                               .queue_ns = ClampedNs(start - arrival),
                               .compute_ns = ClampedNs(done - start)};
}

}  // namespace banyan::expert
