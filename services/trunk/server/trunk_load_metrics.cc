#include "services/trunk/server/trunk_load_metrics.h"

namespace banyan::trunk {

TrunkLoadMetrics::TrunkLoadMetrics(MetricsRegistry& metrics)
    : model_bytes(
          metrics.Gauge("banyan_trunk_model_bytes",
                        "Bytes of the trunk's weights in the files that are served: the "
                        "checkpoint's, and the trunk pack's where matrices are converted.")),
      planned_bytes(metrics.Gauge("banyan_trunk_planned_bytes",
                                  "Memory that the plan made at the start counts with: of the GPU "
                                  "where the trunk is on one, else of the host.")),
      loaded_bytes(metrics.Gauge("banyan_trunk_loaded_bytes",
                                 "Bytes of the trunk's weights brought into memory so far.")),
      seconds(metrics.Gauge("banyan_trunk_load_seconds",
                            "How long the load took, the wait for experts included; 0 until it "
                            "is over.")),
      bandwidth(metrics.Gauge(
          "banyan_trunk_memory_bandwidth_bytes_per_second",
          "Speed of reading the trunk's weights with all threads, measured at the end of the "
          "load; weights that fit the CPU's caches are read from there.")),
      prompt_experts(metrics.Gauge(
          "banyan_trunk_prompt_experts",
          "Routed experts of each layer that the trunk computes itself for the longest prompts, "
          "with weights from the hosts' pool; 0: none.")),
      packs_rejected(metrics.Counter("banyan_trunk_packs_rejected_total",
                                     "Packs that were damaged or did not fit the checkpoint and "
                                     "were made anew.")) {}

}  // namespace banyan::trunk
