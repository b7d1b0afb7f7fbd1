// Which instruction set the CPU operations use: chosen once, from CPUID and what the operating
// system saves.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::trunk::cpu {

// `name`: "scalar", "avx2" (with FMA), "avx512" (F, BW, DQ, VL), "amx" (that, and products
// with AMX tiles), or "auto" for the best of AvailableTiers. kInvalidArgument: another name;
// kUnimplemented: this CPU lacks it. Results of different tiers differ in rounding.
absl::StatusOr<const KernelTable*> FindKernels(std::string_view name);

// The tiers that this machine runs, best first.
std::vector<std::string> AvailableTiers();

}  // namespace banyan::trunk::cpu
