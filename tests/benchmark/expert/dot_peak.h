// What the dot product instructions of a tier do from registers: the bound of calls with many rows.
#pragma once

#include "common/parallel/worker_pool.h"

namespace banyan::expert {

enum class DotInputs { kInt8, kBF16 };

// Multiply-adds per second, all threads of the pool; the best of several tries. 0 for a tier
// without such a measurement (scalar, avx2, avx512). The CPU must have the tier.
double MeasureDotPeak(WorkerPool& pool, const char* tier, DotInputs inputs);

}  // namespace banyan::expert
