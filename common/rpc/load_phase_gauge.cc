#include "common/rpc/load_phase_gauge.h"

#include "absl/strings/ascii.h"

namespace banyan {

using common::v1::LoadProgress;

LoadPhaseGauge::LoadPhaseGauge(const std::string& part, MetricsRegistry* registry) {
  for (int number = LoadProgress::Phase_MIN; number <= LoadProgress::Phase_MAX; ++number) {
    if (!LoadProgress::Phase_IsValid(number) || number == LoadProgress::PHASE_UNSPECIFIED) continue;
    const auto phase = static_cast<LoadProgress::Phase>(number);
    const prometheus::Labels labels = {
        {"phase", absl::AsciiStrToLower(LoadProgress::Phase_Name(phase))}};
    const std::string prefix = "banyan_" + part + "_load_phase";
    gauges_[phase] = {
        &registry->Gauge(prefix, "1 for the phase that the load is in, 0 for the others.", labels),
        &registry->Gauge(prefix + "_bytes", "Bytes that a phase of the load has gone through.",
                         labels),
        &registry->Gauge(prefix + "_expected_bytes",
                         "Bytes that a phase of the load goes through in all; 0 until it is known.",
                         labels)};
  }
}

void LoadPhaseGauge::Set(LoadProgress::Phase phase) {
  for (const auto& [other, gauges] : gauges_) gauges.current->Set(other == phase ? 1 : 0);
}

void LoadPhaseGauge::SetBytes(LoadProgress::Phase phase, uint64_t done, uint64_t total) {
  const auto found = gauges_.find(phase);
  if (found == gauges_.end()) return;
  found->second.bytes->Set(static_cast<double>(done));
  found->second.expected_bytes->Set(static_cast<double>(total));
}

}  // namespace banyan
