// What the integer instructions of a tier do from registers: the bound of calls with many rows.
#pragma once

#include "common/parallel/worker_pool.h"

namespace banyan::expert {

// Multiply-adds of 8-bit numbers per second, all threads of the pool; the best of several tries. 0
// for a tier without such a measurement (scalar, avx2).
double MeasureIntPeak(WorkerPool& pool, const char* tier);

}  // namespace banyan::expert
