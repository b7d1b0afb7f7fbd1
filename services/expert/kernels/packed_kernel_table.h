// The rows that packed_kernel_table.cc chooses from, and the list of all that a CPU has.
#pragma once

#include <vector>

#include "common/cpu/cpu_features.h"
#include "services/expert/kernels/packed_ffn.h"

namespace banyan::expert {

// bf16 and nf4, exact and fast.
inline constexpr int kNumPackedF32 = 4;
// int8 and int4, exact and fast.
inline constexpr int kNumPackedInt = 4;
extern const PackedKernels kPackedF32Scalar[kNumPackedF32];
extern const PackedKernels kPackedIntScalar[kNumPackedInt];
#if defined(__x86_64__)
extern const PackedKernels kPackedF32Avx2[kNumPackedF32];
extern const PackedKernels kPackedF32Avx512[kNumPackedF32];
extern const PackedKernels kPackedIntAvx2[kNumPackedInt];
extern const PackedKernels kPackedIntVnni[kNumPackedInt];
extern const PackedKernels kPackedBF16Avx512[kNumPackedF32];
extern const PackedKernels kPackedBF16Amx[kNumPackedF32];
extern const PackedKernels kPackedIntAmx[kNumPackedInt];
#endif

// Every kernel set that `features` allows, slowest tier first.
std::vector<const PackedKernels*> AvailablePackedKernels(const CpuFeatures& features);

}  // namespace banyan::expert
