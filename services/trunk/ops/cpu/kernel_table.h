// The vectorised inner functions of the CPU operations, one table per tier. Arguments are tiles:
// which rows, heads or outputs one thread works on. All f32, row-major; nothing is checked here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace banyan::trunk::cpu {

inline constexpr int64_t kTilePageTokens = 64;
inline constexpr int64_t kTileChunkTokens = 64;
inline constexpr int64_t kTileInt8GroupColumns = 64;
// Of a thread, for kernels that arrange rows and weights before they multiply.
inline constexpr int64_t kLinearScratchBytes = (1024 + 64) << 10;

// linear_kernel.h, linear_amx_kernel.h, linear_amx_codes_kernel.h: outputs [begin, end) of all
// rows.
struct LinearTile {
  const float* x = nullptr;  // [num_rows, k], row stride ldx
  int64_t ldx = 0;
  int64_t num_rows = 0;
  const std::byte* w = nullptr;   // [n, k] without gaps, any alignment
  const float* scales = nullptr;  // of 8-bit codes: [n, groups of kTileInt8GroupColumns]
  int64_t k = 0;
  float* y = nullptr;  // [num_rows, n], row stride ldy
  int64_t ldy = 0;
  int64_t begin = 0;
  int64_t end = 0;
  std::byte* scratch = nullptr;  // kLinearScratchBytes, of whole cache lines
};

// norm_kernel.h: x += addend (unless null); out = x * rsqrt(mean(x^2) + eps) * (1 + weight).
struct NormRow {
  float* x = nullptr;             // [n]
  const float* addend = nullptr;  // [n] or null
  const float* weight = nullptr;  // [n]
  int64_t n = 0;
  float eps = 0;
  float* out = nullptr;  // [n]; may be x
};

// norm_kernel.h: the zero-centred norm of one head and its rotation.
struct NormRopeHead {
  const float* x = nullptr;       // [head_dim]
  const float* weight = nullptr;  // [head_dim]
  const float* cos = nullptr;     // [rotary_dim / 2]
  const float* sin = nullptr;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  float eps = 0;
  float* out = nullptr;  // [head_dim]; may be x
};

// causal_conv_kernel.h: consecutive channels of one segment, those of one head.
struct ConvHead {
  const float* in = nullptr;  // [num_rows, width], row stride ld_in
  int64_t ld_in = 0;
  int64_t num_rows = 0;
  int64_t width = 0;
  int64_t taps = 0;
  const float* weight = nullptr;  // [taps, width], row stride ld_channels
  float* state = nullptr;         // [taps - 1, width], row stride ld_channels, oldest first
  int64_t ld_channels = 0;
  bool fresh = false;  // the state counts as zero
  bool normalize = false;
  float scale = 1;       // after normalising
  float* out = nullptr;  // [num_rows, width], row stride ld_out
  int64_t ld_out = 0;
};

// delta_net_decode_kernel.h and delta_net_prefill_kernel.h: one value head of one segment.
struct DeltaHead {
  const float* q = nullptr;  // [num_rows, key_dim], row stride ld_qkv: normalised, scaled
  const float* k = nullptr;
  const float* v = nullptr;  // [num_rows, value_dim]
  int64_t ld_qkv = 0;
  const float* log_decay = nullptr;  // [num_rows], stride ld_gates
  const float* beta = nullptr;
  int64_t ld_gates = 0;
  const float* z = nullptr;  // [num_rows, value_dim], row stride ld_z
  int64_t ld_z = 0;
  const float* norm_weight = nullptr;  // [value_dim]
  float eps = 0;
  float* state = nullptr;  // [key_dim, value_dim]
  bool fresh = false;      // the state counts as zero
  int64_t num_rows = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  float* out = nullptr;  // [num_rows, value_dim], row stride ld_out
  int64_t ld_out = 0;
  float* scratch = nullptr;  // CpuThreadFloats (common/plan/op_scratch.h)
};

// paged_attention_kernel.h: query rows of one segment against one key-value head. Page p holds keys
// as [head_dim, 64] (token fastest) and values as [64, head_dim].
struct AttentionTile {
  const float* q = nullptr;  // head h of row r: q + r * ld_q + h * head_stride, head_dim floats
  int64_t ld_q = 0;
  int64_t head_stride = 0;
  int64_t num_rows = 0;
  int64_t group = 0;  // query heads of this key-value head
  int64_t head_dim = 0;
  int64_t first_position = 0;      // of the tile's first row
  const int32_t* pages = nullptr;  // of the sequence, from its start
  const float* keys = nullptr;     // of this head in page 0
  const float* values = nullptr;
  int64_t page_stride = 0;  // floats from a page to the next
  float scale = 0;
  float* scratch = nullptr;  // num_rows * group * (head_dim + 64)
};

// Running softmax of num = num_rows * group query vectors.
struct AttentionSums {
  float* max = nullptr;  // [num]
  float* sum = nullptr;  // [num]
  float* acc = nullptr;  // [num, head_dim], weighted values not yet divided by sum
};

constexpr AttentionSums PlaceSums(float* base, int64_t num) {
  return {base, base + num, base + 2 * num};
}

struct AttentionOutput {
  const float* gate = nullptr;  // head h of row r: gate + r * ld_gate + h * head_stride
  int64_t ld_gate = 0;
  int64_t head_stride = 0;
  float* out = nullptr;  // head h of row r: out + r * ld_out + h * head_dim
  int64_t ld_out = 0;
};

struct KernelTable {
  const char* name;
  void (*linear_bf16)(const LinearTile&);
  void (*linear_f32)(const LinearTile&);
  void (*linear_i8)(const LinearTile&);
  // These arrange all rows of a tile first, so that many rows want few tiles; and take so many
  // outputs at once.
  bool linear_arranges;
  int64_t linear_outputs;
  void (*norm_row)(const NormRow&);
  void (*norm_rope_head)(const NormRopeHead&);
  void (*conv_head)(const ConvHead&);
  void (*delta_decode)(const DeltaHead&);
  void (*delta_prefill)(const DeltaHead&);
  // Keys of pages [begin_page, end_page) of the sequence; overwrites sums.
  void (*attend)(const AttentionTile&, int64_t begin_page, int64_t end_page,
                 const AttentionSums& sums);
  // total = total joined with part.
  void (*merge_sums)(const AttentionSums& total, const AttentionSums& part, int64_t num,
                     int64_t head_dim);
  // out = acc / sum * sigmoid(gate).
  void (*finish_attention)(const AttentionTile&, const AttentionSums& sums,
                           const AttentionOutput& output);
  // out[i] = silu(gate[i]) * up[i]; out may be gate.
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  // hidden[i] += routed[i] + sigmoid(gate) * shared[i].
  void (*combine_row)(const float* routed, const float* shared, float gate, int64_t n,
                      float* hidden);
};

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

// With AMX tiles, for a table that is kAvx512Kernels otherwise.
void LinearBf16Amx(const LinearTile& tile);
void LinearI8Amx(const LinearTile& tile);
// Such a table of any two functions of that kind.
KernelTable WithTiledLinear(const char* name, void (*bf16)(const LinearTile&),
                            void (*codes)(const LinearTile&));

}  // namespace banyan::trunk::cpu
