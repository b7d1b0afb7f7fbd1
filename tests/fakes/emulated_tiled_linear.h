// For emulated_linear.cc: what is compiled for AVX-512 with BF16, in a file of its own.
#pragma once

#include "services/trunk/ops/cpu/kernel_table.h"

namespace banyan::test {

void EmulatedLinearBf16(const trunk::cpu::LinearTile& tile);
void EmulatedLinearI8(const trunk::cpu::LinearTile& tile);

}  // namespace banyan::test
