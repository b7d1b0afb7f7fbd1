// Decodes one panel of nf4 to bf16, for tiers that then run their kernels for row-major bf16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace banyan::expert {

// out: [kPanelOutputs] rows of NumChunks(k) * kChunkInputs bf16, `stride` bytes apart, 64-byte
// aligned. Asks for memory ahead of the panel.
using DecodeNF4Function = void (*)(const std::byte* panel, int64_t k, int64_t stride,
                                   std::byte* out);

void DecodeNF4PanelScalar(const std::byte* panel, int64_t k, int64_t stride, std::byte* out);
#if defined(__x86_64__)
void DecodeNF4PanelAvx2(const std::byte* panel, int64_t k, int64_t stride, std::byte* out);
void DecodeNF4PanelAvx512(const std::byte* panel, int64_t k, int64_t stride, std::byte* out);
#endif

}  // namespace banyan::expert
