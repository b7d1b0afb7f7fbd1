// What the machine can do at best, with the threads of a pool.
#pragma once

#include "common/parallel/worker_pool.h"

namespace banyan::trunk {

// Bytes per second read from 256 MiB per run, best of five.
double MeasureReadBandwidth(WorkerPool* pool);

// Floating-point operations per second (a multiply-add counts two) of f32 vectors in registers,
// the widest this CPU has, best of five.
double MeasurePeakFlops(WorkerPool* pool);

}  // namespace banyan::trunk
