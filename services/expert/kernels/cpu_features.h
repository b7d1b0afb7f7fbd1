// Which instruction sets the CPU has and the operating system saves.
#pragma once

namespace banyan::expert {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA and the operating system's support for 256-bit registers
  bool avx512 = false;  // AVX-512 F, BW, DQ, VL and the same for 512-bit and mask registers
};

// Asks CPUID and XGETBV; all false on another architecture.
CpuFeatures ReadCpuFeatures();

}  // namespace banyan::expert
