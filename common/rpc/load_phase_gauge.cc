#include "common/rpc/load_phase_gauge.h"

#include "absl/strings/ascii.h"

namespace banyan {

using common::v1::LoadProgress;

LoadPhaseGauge::LoadPhaseGauge(const std::string& part, MetricsRegistry* registry)
    : done_bytes_(registry->Gauge("banyan_" + part + "_load_done_bytes",
                                  "Bytes that the present phase of the load has done.")),
      total_bytes_(registry->Gauge("banyan_" + part + "_load_total_bytes",
                                   "Bytes that the present phase of the load has to do; 0: "
                                   "unknown, or the load is over.")) {
  for (int number = LoadProgress::Phase_MIN; number <= LoadProgress::Phase_MAX; ++number) {
    if (!LoadProgress::Phase_IsValid(number) || number == LoadProgress::PHASE_UNSPECIFIED) continue;
    const auto phase = static_cast<LoadProgress::Phase>(number);
    gauges_[phase] = &registry->Gauge(
        "banyan_" + part + "_load_phase", "1 for the phase that the load is in, 0 for the others.",
        {{"phase", absl::AsciiStrToLower(LoadProgress::Phase_Name(phase))}});
  }
}

void LoadPhaseGauge::Set(LoadProgress::Phase phase) {
  for (const auto& [other, gauge] : gauges_) gauge->Set(other == phase ? 1 : 0);
}

void LoadPhaseGauge::SetBytes(uint64_t done, uint64_t total) {
  done_bytes_.Set(static_cast<double>(done));
  total_bytes_.Set(static_cast<double>(total));
}

}  // namespace banyan
