#include "common/rpc/load_phase_gauge.h"

#include "absl/strings/ascii.h"

namespace banyan {

using common::v1::LoadProgress;

LoadPhaseGauge::LoadPhaseGauge(const std::string& part, MetricsRegistry* registry) {
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

}  // namespace banyan
