// bf16 and nf4 with f32 activations in the tiers scalar and avx2, for both precisions. The kernels
// are those of expert_ffn.h, whose order of arithmetic holds: bf16 in place, nf4 over one decoded
// panel after the other.
//
// A prepared row: f32 [PaddedFloats(k)], zero from k on.
#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/nf4.h"
#include "services/expert/kernels/expert_ffn.h"
#include "services/expert/kernels/nf4_panel.h"
#include "services/expert/kernels/packed_ffn.h"
#include "services/expert/kernels/packed_kernel_table.h"

namespace banyan::expert {
namespace {

// Decoded rows are a line more than a power of two apart, so that a tile of them does not fall
// into one set of the cache.
constexpr int64_t DecodedStride(int64_t k) { return NumChunks(k) * kChunkInputs * 2 + 64; }
constexpr int64_t kDecodedPanel = kPanelOutputs * DecodedStride(kMaxPackedInputs);

int64_t RowBytes(int64_t k) { return PaddedFloats(k) * int64_t{sizeof(float)}; }

void Prepare(const float* x, int64_t k, std::byte* out) {
  std::memcpy(out, x, static_cast<size_t>(k) * sizeof(float));
  std::memset(out + k * 4, 0, static_cast<size_t>(RowBytes(k) - k * 4));
}

// What a call of the f32 kernels takes, apart from weights and outputs.
GateUpArgs F32Args(const PackedGateUpArgs& a) {
  return {.weights = nullptr,
          .hidden_size = a.hidden_size,
          .first_output = 0,
          .end_output = 0,
          .num_rows = a.num_rows,
          .rows = a.rows,
          .x = reinterpret_cast<const float*>(a.x),
          .x_stride = a.x_stride / 4,
          .hidden = reinterpret_cast<float*>(a.hidden),
          .hidden_stride = a.hidden_stride / 4};
}

DownArgs F32Args(const PackedDownArgs& a) {
  return {.weights = nullptr,
          .width = a.width,
          .first_output = 0,
          .end_output = 0,
          .num_rows = a.num_rows,
          .rows = a.rows,
          .routing_weights = a.routing_weights,
          .hidden = reinterpret_cast<const float*>(a.hidden),
          .hidden_stride = a.hidden_stride / 4,
          .sum = a.sum,
          .sum_stride = a.sum_stride,
          .add = a.add};
}

int32_t EndOutput(int32_t end_panel, int32_t num_outputs) {
  return static_cast<int32_t>(std::min<int64_t>(end_panel * kPanelOutputs, num_outputs));
}

// The last call of a row writes what lies behind its width.
void PadHidden(const PackedGateUpArgs& a) {
  if (EndOutput(a.end_panel, a.width) < a.width) return;
  const int64_t used = a.width * int64_t{sizeof(float)};
  for (int32_t i = 0; i < a.num_rows; ++i) {
    std::memset(a.hidden + i * a.hidden_stride + used, 0,
                static_cast<size_t>(RowBytes(a.width) - used));
  }
}

template <const FfnKernels& kKernels>
void BF16GateUp(const PackedGateUpArgs& a) {
  const int64_t stride = int64_t{a.hidden_size} * 2;
  const ExpertWeights weights = {.gate_proj = {a.weights->gate_proj, stride},
                                 .up_proj = {a.weights->up_proj, stride},
                                 .down_proj = {}};
  GateUpArgs args = F32Args(a);
  args.weights = &weights;
  args.first_output = static_cast<int32_t>(a.first_panel * kPanelOutputs);
  args.end_output = EndOutput(a.end_panel, a.width);
  kKernels.gate_up(args);
  PadHidden(a);
}

template <const FfnKernels& kKernels>
void BF16Down(const PackedDownArgs& a) {
  const ExpertWeights weights = {
      .gate_proj = {}, .up_proj = {}, .down_proj = {a.weights->down_proj, int64_t{a.width} * 2}};
  DownArgs args = F32Args(a);
  args.weights = &weights;
  args.first_output = static_cast<int32_t>(a.first_panel * kPanelOutputs);
  args.end_output = EndOutput(a.end_panel, a.hidden_size);
  kKernels.down(args);
}

template <const FfnKernels& kKernels, DecodeNF4Function kDecode>
void NF4GateUp(const PackedGateUpArgs& a) {
  const int64_t k = a.hidden_size;
  CHECK(k <= kMaxPackedInputs);
  const int64_t stride = DecodedStride(k);
  const int64_t panel_bytes = NumChunks(k) * kNF4ChunkBytes;
  const ExpertWeights weights = {.gate_proj = {a.scratch, stride},
                                 .up_proj = {a.scratch + kDecodedPanel, stride},
                                 .down_proj = {}};
  for (int32_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    kDecode(a.weights->gate_proj + panel * panel_bytes, k, stride, a.scratch);
    kDecode(a.weights->up_proj + panel * panel_bytes, k, stride, a.scratch + kDecodedPanel);
    const auto first = static_cast<int32_t>(panel * kPanelOutputs);
    GateUpArgs args = F32Args(a);
    args.weights = &weights;
    args.end_output = EndOutput(panel + 1, a.width) - first;
    args.hidden += first;
    kKernels.gate_up(args);
  }
  PadHidden(a);
}

template <const FfnKernels& kKernels, DecodeNF4Function kDecode>
void NF4Down(const PackedDownArgs& a) {
  const int64_t k = a.width;
  CHECK(k <= kMaxPackedInputs);
  const int64_t stride = DecodedStride(k);
  const int64_t panel_bytes = NumChunks(k) * kNF4ChunkBytes;
  const ExpertWeights weights = {.gate_proj = {}, .up_proj = {}, .down_proj = {a.scratch, stride}};
  for (int32_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    kDecode(a.weights->down_proj + panel * panel_bytes, k, stride, a.scratch);
    const auto first = static_cast<int32_t>(panel * kPanelOutputs);
    DownArgs args = F32Args(a);
    args.weights = &weights;
    args.end_output = EndOutput(panel + 1, a.hidden_size) - first;
    args.sum += first;
    kKernels.down(args);
  }
}

template <const FfnKernels& kKernels>
constexpr PackedKernels BF16Kernels(const char* tier, Precision precision) {
  return {.tier = tier,
          .format = PoolFormat::kBF16,
          .precision = precision,
          .scratch_bytes = 0,
          .row_bytes = RowBytes,
          .prepare = Prepare,
          .gate_up = BF16GateUp<kKernels>,
          .down = BF16Down<kKernels>,
          .enter_thread = nullptr};
}

template <const FfnKernels& kKernels, DecodeNF4Function kDecode>
constexpr PackedKernels NF4Kernels(const char* tier, Precision precision) {
  static_assert(2 * kDecodedPanel <= 1 << 20);
  return {.tier = tier,
          .format = PoolFormat::kNF4,
          .precision = precision,
          .scratch_bytes = 2 * kDecodedPanel,
          .row_bytes = RowBytes,
          .prepare = Prepare,
          .gate_up = NF4GateUp<kKernels, kDecode>,
          .down = NF4Down<kKernels, kDecode>,
          .enter_thread = nullptr};
}

}  // namespace

constinit const PackedKernels kPackedF32Scalar[kNumPackedF32] = {
    BF16Kernels<kScalarKernels>("scalar", Precision::kExact),
    BF16Kernels<kScalarKernels>("scalar", Precision::kFast),
    NF4Kernels<kScalarKernels, DecodeNF4PanelScalar>("scalar", Precision::kExact),
    NF4Kernels<kScalarKernels, DecodeNF4PanelScalar>("scalar", Precision::kFast),
};

#if defined(__x86_64__)
constinit const PackedKernels kPackedF32Avx2[kNumPackedF32] = {
    BF16Kernels<kAvx2Kernels>("avx2", Precision::kExact),
    BF16Kernels<kAvx2Kernels>("avx2", Precision::kFast),
    NF4Kernels<kAvx2Kernels, DecodeNF4PanelAvx2>("avx2", Precision::kExact),
    NF4Kernels<kAvx2Kernels, DecodeNF4PanelAvx2>("avx2", Precision::kFast),
};
#endif

}  // namespace banyan::expert
