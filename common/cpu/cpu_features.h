// Which instruction sets the CPU has and the operating system saves.
#pragma once

namespace banyan {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA, F16C and the operating system's support for 256-bit registers
  bool avx512 = false;  // AVX-512 F, BW, DQ, VL and the same for 512-bit and mask registers
  // With avx512:
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  // With avx512_vnni or avx512_bf16, and the operating system's permission to use tiles:
  bool amx_int8 = false;
  bool amx_bf16 = false;
};

// Asks CPUID and XGETBV; all false on another architecture. Where there are AMX tiles the first
// call asks Linux for the permission to use them, which holds for all threads of the process from
// then on and makes signal stacks larger.
CpuFeatures ReadCpuFeatures();

}  // namespace banyan
