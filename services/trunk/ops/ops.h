// Every operation the forward pass needs, as one table with an implementation per kind of device.
//
// Pointers are device pointers: what AllocateDevice, PlaceMatrix and PlaceVector returned, and the
// device sides of AllocateShared. On the CPU all memory is host memory; elsewhere the host sees
// device memory through the host sides of shared buffers and through copies only. Arrays are f32,
// row-major, without gaps between rows, 64-byte aligned, borrowed for the call; inputs and outputs
// do not overlap unless said.
//
// A step is planned once on the host (StepPlan), made known to the device by BeginStep and then
// used by the operations of every layer. Operations are queued in order; none allocates, none
// looks at device data from the host. Their arguments are checked by whoever builds the model
// (shapes against config.json), so they return nothing; a device that fails says so in Synchronize
// and from then on.
//
// A row's result is a function of that row and of its sequence's state alone: not of the other
// rows, the number of threads, or how rows were spread over steps. Sources: model spec section 3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/plan/device_arena.h"
#include "common/plan/op_limits.h"
#include "common/plan/trunk_format.h"
#include "common/quant/bf16.h"
#include "common/quant/pool_format.h"
#include "common/tensor/dtype.h"
#include "common/tensor/tensor_view.h"

namespace banyan::trunk {

inline constexpr int32_t kOpsPageTokens = kKvPageTokens;
inline constexpr int32_t kOpsChunkTokens = 64;  // grid of the chunked DeltaNet

// [rows, cols], bf16 or f32, as it lies in the checkpoint, or 8-bit codes: y = W x.
struct Matrix {
  DType dtype = DType::kF32;  // kI8: an element is its code times its group's scale
  int32_t rows = 0;
  int32_t cols = 0;
  const std::byte* data = nullptr;  // any alignment on the CPU
  const float* scales = nullptr;    // kI8: [rows, Int8Groups(cols)]
  // Of a larger matrix, of which these are some rows (Embed).
  int32_t first_row = 0;
};

// One sequence's consecutive rows of a step.
struct PlanSegment {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t first_position = 0;
  int32_t slot = 0;
  int32_t first_page = 0;  // into StepPlan::page_ids
  bool chunked = false;    // DeltaNet in chunks; first_position lies on the grid of kOpsChunkTokens
  int32_t prompt_tokens = 0;  // as in StepSegment (engine/step.h); no operation reads it
};

// Host arrays, valid until the next BeginStep.
struct StepPlan {
  int32_t num_rows = 0;
  std::span<const PlanSegment> segments;  // cover the rows, ascending
  std::span<const int32_t> token_ids;     // [num_rows]
  std::span<const int32_t> positions;     // [num_rows]
  std::span<const int32_t> page_ids;      // pages of every segment, from its sequence's start
  std::span<const float> rope_cos;        // [num_rows, rotary_dim / 2]
  std::span<const float> rope_sin;
};

using banyan::AttentionShape;     // NOLINT(misc-unused-using-decls): part of this interface
using banyan::DeltaNetShape;      // NOLINT(misc-unused-using-decls)
using banyan::HostExpertShape;    // NOLINT(misc-unused-using-decls)
using banyan::Int8Groups;         // NOLINT(misc-unused-using-decls): part of this interface
using banyan::kInt8GroupColumns;  // NOLINT(misc-unused-using-decls)
using banyan::kMaxStepParts;      // NOLINT(misc-unused-using-decls)
using banyan::kMaxTopLogits;      // NOLINT(misc-unused-using-decls)
using banyan::OpLimits;           // NOLINT(misc-unused-using-decls)

// Memory with a side for the device and one for the host: the same bytes on the CPU.
struct SharedBuffer {
  std::byte* device = nullptr;
  std::byte* host = nullptr;
};

// The first `bytes` of a shared buffer.
struct SharedCopy {
  SharedBuffer buffer;
  size_t bytes = 0;
};

inline constexpr size_t kMaxSharedCopies = 4;  // of one call
inline constexpr size_t kMaxLinearCalls = 8;   // of one call
inline constexpr int32_t kMaxExperts = 1024;

struct LinearArgs {
  const float* x = nullptr;  // [num_rows, w->cols]
  const Matrix* w = nullptr;
  float* y = nullptr;  // [num_rows, w->rows]
};

struct CausalConvArgs {
  DeltaNetShape shape;
  // Packed by key head g: q (key_head_dim), k (key_head_dim), v of its value heads, z of its value
  // heads. And b of its value heads, a of its value heads.
  const float* qkvz = nullptr;            // [num_rows, qkvz_dim]
  const float* ba = nullptr;              // [num_rows, 2 * num_value_heads]
  const float* weight = nullptr;          // [taps, conv_dim], the last tap meets the current token
  const float* neg_decay_rate = nullptr;  // -exp(A_log) [num_value_heads]
  const float* dt_bias = nullptr;         // [num_value_heads]
  float* conv_states = nullptr;  // [slots, taps - 1, conv_dim]: last columns, oldest first; in, out
  float* qkv = nullptr;          // out [num_rows, conv_dim]: q, k, v head by head
  float* log_decay = nullptr;    // out [num_rows, num_value_heads]
  float* beta = nullptr;         // out [num_rows, num_value_heads]
};

struct DeltaNetArgs {
  DeltaNetShape shape;
  const float* qkv = nullptr;   // of CausalConv
  const float* qkvz = nullptr;  // for z
  const float* log_decay = nullptr;
  const float* beta = nullptr;
  const float* norm_weight = nullptr;  // [value_head_dim]
  float* states = nullptr;  // [slots, num_value_heads, key_head_dim, value_head_dim]; in, out
  float* out = nullptr;     // [num_rows, value_dim]
};

struct AttentionArgs {
  AttentionShape shape;
  float* q_gate = nullptr;        // [num_rows, num_heads, 2, head_dim]: query, then its output gate
  float* k = nullptr;             // [num_rows, num_kv_heads, head_dim]; overwritten
  const float* v = nullptr;       // [num_rows, num_kv_heads, head_dim]
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  // num_pages * page_elements() of shape.cache_dtype; the layout is the backend's.
  void* key_pages = nullptr;
  void* value_pages = nullptr;
  float* out = nullptr;  // [num_rows, num_heads * head_dim]

  int64_t page_elements() const {
    return int64_t{shape.num_kv_heads} * shape.head_dim * kOpsPageTokens;
  }
};

// RouterTopK, and its results with the experts' input to the host: as it is, or in bf16.
struct RouteArgs {
  int32_t num_experts = 0;
  int32_t top_k = 0;
  bool renormalize = true;
  int32_t hidden_size = 0;
  const float* logits = nullptr;  // [num_rows, num_experts]
  const float* input = nullptr;   // [num_rows, hidden_size]
  // [num_rows, hidden_size] of rows_dtype. kF32: the device side is `input`. kBF16: of the two
  // sides only the host's is promised.
  SharedBuffer rows;
  DType rows_dtype = DType::kF32;
  SharedBuffer ids;      // uint16 [num_rows, top_k]
  SharedBuffer weights;  // f32 [num_rows, top_k]
};

// The experts' answer from the host, MoeCombine, and the norm that comes next.
struct CombineArgs {
  int32_t hidden_size = 0;
  SharedBuffer routed;                // f32 [num_rows, hidden_size]
  const float* shared = nullptr;      // [num_rows, hidden_size]
  const float* gate_logit = nullptr;  // [num_rows]
  float* hidden = nullptr;            // [num_rows, hidden_size]; in, out
  float eps = 0;
  const float* norm_weight = nullptr;  // [hidden_size]
  float* normed = nullptr;             // out [num_rows, hidden_size]
};

// A routed expert of which the device reads the weights where the host has them.
struct HostExpert {
  // gate, up and down as a pack has them (docs/formats/expert_pack.md), whole, in memory of
  // MapHost.
  const std::byte* weights = nullptr;
  // Of the pairs below, one at least. Slices of one expert's width have the same ones.
  int32_t first_pair = 0;
  int32_t num_pairs = 0;
};

// The weights of several, one format and shape.
struct HostExpertWeights {
  PoolFormat format = PoolFormat::kBF16;
  int32_t hidden_size = 0;
  int32_t width = 0;
  std::span<const std::byte* const> experts;  // as HostExpert::weights
};

// Pairs of a row and an expert that was chosen for it. Host arrays, borrowed for the call.
struct HostExpertsArgs {
  PoolFormat format = PoolFormat::kBF16;
  int32_t hidden_size = 0;
  int32_t width = 0;  // moe_intermediate_size
  SharedBuffer rows;  // BF16 [num_rows, hidden_size], as RouteToHost of as many rows left them
  std::span<const HostExpert> experts;
  std::span<const int32_t> pair_rows;  // ascending within an expert
  std::span<const float> pair_weights;
  float* hidden = nullptr;  // [num_rows, hidden_size]; in, out
};

struct TopLogitsArgs {
  int32_t vocab_size = 0;         // logits of a row
  int32_t num_ids = 0;            // those of ids below it count, 1 to vocab_size
  int32_t k = 0;                  // 1 to kMaxTopLogits, at most num_ids
  const float* logits = nullptr;  // [num_rows, vocab_size]
  float* scores = nullptr;        // out [num_rows, k]
  int32_t* ids = nullptr;         // out [num_rows, k]
  int32_t* bounded = nullptr;     // out [num_rows]
};

// Owned by one thread, the engine's.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;

  // What the device has free, if its memory is not the host's: for plans, before anything is
  // allocated.
  virtual std::optional<uint64_t> FreeDeviceBytes() const { return std::nullopt; }

  // All device memory that will be asked for, what Reserve takes included, in one allocation: what
  // goes beyond is refused, and Reserve, the last that asks, refuses if anything is left. A device
  // that is not told so before the first piece takes them as they come, and so does the host.
  // kResourceExhausted with the numbers; nothing is allocated then.
  virtual absl::Status SetAside(const DeviceArena& /*pieces*/) { return absl::OkStatus(); }

  // Memory, zeroed, 64-byte aligned, freed with the backend. kResourceExhausted.
  virtual absl::StatusOr<std::byte*> AllocateDevice(size_t bytes) = 0;
  virtual absl::StatusOr<SharedBuffer> AllocateShared(size_t bytes) = 0;
  // Host memory that the device reaches at the same address, 64-byte aligned, contents undefined.
  // Lives while somebody holds it, longer than the backend if need be. kResourceExhausted.
  virtual absl::StatusOr<std::shared_ptr<std::byte>> AllocateHost(size_t bytes) = 0;
  // Weights where operations can read them; the CPU keeps the view, which must outlive the backend.
  virtual absl::StatusOr<Matrix> PlaceMatrix(const TensorView& view) = 0;
  // The same as 8-bit codes (int8_rows.h); `view` may go when this returns.
  virtual absl::StatusOr<Matrix> PlaceInt8Matrix(const TensorView& view) = 0;
  // Codes and scales as that would make them, in host memory; the CPU keeps them where they are,
  // and they outlive the backend.
  virtual absl::StatusOr<Matrix> PlaceInt8Codes(const Matrix& codes) = 0;
  // A matrix of which Embed reads single rows: it need not lie in the device's own memory.
  virtual absl::StatusOr<Matrix> PlaceTable(const TensorView& view) { return PlaceMatrix(view); }
  virtual bool TablesInHostMemory() const { return false; }
  virtual absl::StatusOr<const float*> PlaceVector(std::span<const float> values) = 0;

  // After Reserve: lets the device read this memory of the host, for HostExperts. Pages are held
  // until the backend is gone, and must stay mapped as long. Returns how fast the device reads such
  // memory, bytes a second, the best of what was measured so far, each time with the first of it;
  // 0: it is the device's own. The system's error where that cannot be done.
  virtual absl::StatusOr<double> MapHost(std::span<const std::byte> /*memory*/) { return 0.0; }

  // Sets scratch aside; once, before the first step.
  virtual absl::Status Reserve(const OpLimits& limits) = 0;
  virtual size_t ScratchBytes(const OpLimits& limits) const = 0;

  // Operations from here on are of this plan.
  void BeginStep(const StepPlan& plan) { BeginPart(0, plan); }
  // The same for a step that runs in parts (OpLimits::max_parts), which are made known one after
  // the other, from 0 on; operations are of the part that was begun or chosen last.
  virtual void BeginPart(int32_t part, const StepPlan& plan) = 0;
  virtual void UsePart(int32_t part) = 0;
  // Waits until everything queued is done and visible to the host.
  virtual absl::Status Synchronize() = 0;

  // Queued copies between the sides of shared buffers, and the hand-over that goes with each:
  //   AwaitHost        waits for the oldest CopyToHost that was not yet waited for, and for nothing
  //                    after it; Synchronize waits for all, and then AwaitHost for none
  //   ReleaseToDevice  the host sides of the oldest CopyToDevice not yet released are as they
  //                    should be, and stay so until something queued after it was waited for. The
  //                    device waits for it.
  // On the CPU none of them does anything.
  virtual void CopyToHost(std::span<const SharedCopy> copies) = 0;
  virtual void CopyToDevice(std::span<const SharedCopy> copies) = 0;
  virtual absl::Status AwaitHost() = 0;
  virtual void ReleaseToDevice() = 0;

  // A device may remember the operations of a step, from one step to the next of the same shape
  // with the same buffers, and run them without hearing of each again:
  //   kNo        queue them as ever
  //   kRecord    queue them all, then EndRecording starts them; the hand-overs come after that
  //   kReplayed  they are started; only the hand-overs are left to do
  enum class Recording { kNo, kRecord, kReplayed };
  virtual Recording BeginRecording() { return Recording::kNo; }
  virtual void EndRecording() {}

  // out [plan rows, table.cols] = rows of the table at the plan's token ids; zero for those that
  // are not among the table's rows, which begin at first_row.
  virtual void Embed(const Matrix& table, float* out) = 0;

  // y = W x for several matrices over the same number of rows; f32 accumulation.
  virtual void Linear(int32_t num_rows, std::span<const LinearArgs> calls) = 0;

  // x += addend unless that is null; out = x * rsqrt(mean(x^2) + eps) * (1 + weight).
  //   x [num_rows, n] in, out   addend [num_rows, n]   weight [n]   out [num_rows, n]
  virtual void RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight,
                       const float* addend, float* x, float* out) = 0;

  // Depthwise convolution, SiLU, l2 norm of q and k (q also by 1 / sqrt(key_head_dim)), and the
  // decay and write strength of each row: log_decay = neg_decay_rate * softplus(a + dt_bias),
  // beta = sigmoid(b). Moves the slots' convolution states on; those of segments at position 0
  // count as zero.
  virtual void CausalConv(const CausalConvArgs& args) = 0;

  // The recurrence, in chunks or token by token as the segments say, and the gated norm. Moves the
  // slots' states on; those of segments at position 0 count as zero.
  virtual void DeltaNet(const DeltaNetArgs& args) = 0;

  // Norm and rotation of q (in place) and k; k and v go to their pages.
  virtual void PrepareAttention(const AttentionArgs& args) = 0;

  // Softmax attention of each row over positions 0 to its own, times sigmoid(gate).
  virtual void PagedAttention(const AttentionArgs& args) = 0;

  // Softmax over num_experts logits, the top_k largest in descending order (ties: lowest id),
  // renormalised to sum 1 if asked.
  //   logits [num_rows, num_experts]   ids, weights [num_rows, top_k]; top_k <= num_experts <=
  //   kMaxExperts
  virtual void RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                          const float* logits, uint16_t* ids, float* weights) = 0;

  // out = silu(gate) * up over num_rows * n values; out may be gate.
  virtual void Swiglu(int32_t num_rows, int32_t n, const float* gate, const float* up,
                      float* out) = 0;

  // hidden += routed + sigmoid(gate_logit) * shared.
  //   hidden, routed, shared [num_rows, n]   gate_logit [num_rows]
  virtual void MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                          const float* gate_logit, float* hidden) = 0;

  // What the operations after the next one will read, for devices that can bring it nearer
  // meanwhile. Changes no result.
  virtual void WillRead(std::span<const Matrix* const> /*matrices*/) {}

  // What a layer does one after the other, for devices that do it at once. Same results.
  virtual void ConvDeltaNet(const CausalConvArgs& conv, const DeltaNetArgs& delta) {
    CausalConv(conv);
    DeltaNet(delta);
  }
  virtual void RouteToHost(int32_t num_rows, const RouteArgs& args);
  virtual void CombineFromHost(int32_t num_rows, const CombineArgs& args);
  // y = W (silu(gate) * up); gate, up [num_rows, w.cols]; gate may be overwritten.
  virtual void SwigluLinear(int32_t num_rows, float* gate, const float* up, const Matrix& w,
                            float* y);

  // For each expert, in this order, and each of its pairs:
  //   hidden[row] += weight * down(silu(gate x) * (up x)),  x = rows[row]
  // with weights and the product before down rounded to bf16, and f32 sums. At most as many pairs
  // as were reserved.
  virtual void HostExperts(int32_t num_rows, const HostExpertsArgs& args) = 0;

  // What the next HostExperts will ask for, as far as the caller knows, in its order: a device may
  // read it as soon as what was queued before is done, which needs the link itself. What is left
  // out then is forgotten, and so is what was announced before.
  virtual void WillReadHostExperts(const HostExpertWeights& /*next*/) {}

  // out = x in bf16, rounded as ToBF16 does; [num_rows, n].
  virtual void RoundRows(int32_t num_rows, int32_t n, const float* x, BF16* out) = 0;

  // hidden += addend, [num_rows, n].
  virtual void AddRows(int32_t num_rows, int32_t n, const float* addend, float* hidden) = 0;

  // out [rows.size(), n] = the given rows of x; `rows` is a host array.
  virtual void GatherRows(std::span<const int32_t> rows, int32_t n, const float* x, float* out) = 0;

  // x [count] += the same array of each other device that shares the model: all of them call it, in
  // the same order with the same counts, and have the same bits afterwards. A value's bits depend
  // on nothing but the values added. Nothing to do for a device that has the model alone.
  virtual void AllReduce(float* /*x*/, int64_t /*count*/) {}

  // The k highest logits of each row and their ids: descending, the lower id first among equals, 0
  // equal to -0. bounded: 1 if each logit that counts is between -2^100 and 2^100, hence none NaN
  // or infinite; else 0, and scores and ids mean nothing. At most max_logits_rows rows of at most
  // vocab_size logits, as reserved.
  virtual void TopLogits(int32_t num_rows, const TopLogitsArgs& args) = 0;

  // Looks whether the device is well, or a device that it shares the model with has failed, without
  // waiting for what is queued. Its failure then reaches all of them.
  virtual absl::Status Check() { return absl::OkStatus(); }

  // Queued, within the device's memory; the ranges do not overlap.
  virtual void CopyWithin(const void* from, size_t bytes, void* to) = 0;

  // Copies from or to any host memory, after everything queued, and waits.
  virtual absl::Status ReadBack(const void* device, size_t bytes, void* host) = 0;
  virtual absl::Status Upload(const void* host, size_t bytes, void* device) = 0;
  // ReadBack of [num_rows, row_bytes] to rows that begin `stride_bytes` after each other.
  virtual absl::Status ReadBackRows(const void* device, size_t row_bytes, int64_t num_rows,
                                    size_t stride_bytes, void* host);
};

}  // namespace banyan::trunk
