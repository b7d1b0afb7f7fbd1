#include "services/trunk/ops/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/op_scratch.h"
#include "services/trunk/ops/cuda/causal_conv.h"
#include "services/trunk/ops/cuda/cuda_status.h"
#include "services/trunk/ops/cuda/delta_net.h"
#include "services/trunk/ops/cuda/delta_net_step.h"
#include "services/trunk/ops/cuda/device.h"
#include "services/trunk/ops/cuda/device_memory.h"
#include "services/trunk/ops/cuda/elementwise.h"
#include "services/trunk/ops/cuda/host_expert_stream.h"
#include "services/trunk/ops/cuda/host_handover.h"
#include "services/trunk/ops/cuda/int8_rows.h"
#include "services/trunk/ops/cuda/launch_args.h"
#include "services/trunk/ops/cuda/linear.h"
#include "services/trunk/ops/cuda/linear_hopper.h"
#include "services/trunk/ops/cuda/paged_attention.h"
#include "services/trunk/ops/cuda/rms_norm.h"
#include "services/trunk/ops/cuda/router_topk.h"
#include "services/trunk/ops/cuda/staged_copies.h"
#include "services/trunk/ops/cuda/step_recordings.h"
#include "services/trunk/ops/cuda/step_upload.h"
#include "services/trunk/ops/cuda/top_logits.h"
#include "services/trunk/sampling/row_math.h"

namespace banyan::trunk {
namespace cuda {
namespace {

static_assert(kMaxLinearCalls <= kMaxMatrices);
static_assert(kMaxExperts == kMaxRouterExperts);
static_assert(kGroupColumns == kInt8GroupColumns);
static_assert(kMaxTop == kMaxTopLogits && kTopBound == kLogitBound);
static_assert(kTerms == kCudaSplitTerms);
static_assert(kHopperSplitRows == kCudaSplitRows);

// Outputs of two CTAs' first tiles on every multiprocessor.
constexpr int64_t kEarlyRows = 32;
// Steps of more rows keep the memory busy as it is.
constexpr int32_t kMostPrefetchRows = 8;
// Queries of the stream before the group is asked.
constexpr int kQueriesPerLook = 1 << 8;
// How long a device that has lost its group goes on with what is queued. A step takes less.
constexpr absl::Duration kLastSums = absl::Seconds(2);

template <typename T>
T* As(std::byte* p) {
  return reinterpret_cast<T*>(p);
}

class CudaBackend : public Backend {
 public:
  CudaBackend(DeviceFacts facts, const CudaBackendOptions& options)
      : facts_(std::move(facts)),
        collective_(options.collective),
        memory_(options.vram_budget_bytes) {}

  ~CudaBackend() override {
    if (stream_ != nullptr && WaitForStream() == cudaErrorNotReady) {
      AbandonDevices();
      for (StepUpload& part : parts_) part.Abandon();
      if (staged_copies_ != nullptr) staged_copies_->Abandon();
      if (host_experts_ != nullptr) host_experts_->Abandon();
      recordings_.Abandon();
      return;
    }
    host_experts_.reset();
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    staged_copies_.reset();
  }

  absl::Status Open() {
    RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
    ASSIGN_OR_RETURN(handover_, HostHandover::Create(&memory_, stream_));
    ASSIGN_OR_RETURN(staged_copies_, StagedCopies::Create(&memory_, stream_));
    return absl::OkStatus();
  }

  std::string_view name() const override { return facts_.name; }
  std::optional<uint64_t> FreeDeviceBytes() const override { return facts_.free_bytes; }

  absl::Status SetAside(const DeviceArena& pieces) override { return memory_.SetAside(pieces); }

  absl::StatusOr<std::byte*> AllocateDevice(size_t bytes) override {
    RETURN_IF_ERROR(EndLoan());
    return memory_.Allocate(bytes);
  }

  absl::StatusOr<SharedBuffer> AllocateShared(size_t bytes) override {
    RETURN_IF_ERROR(EndLoan());
    return handover_->NewBuffer(bytes);
  }

  absl::StatusOr<std::shared_ptr<std::byte>> AllocateHost(size_t bytes) override {
    return NewPinned(bytes);
  }

  absl::StatusOr<Matrix> PlaceMatrix(const TensorView& view) override {
    RETURN_IF_ERROR(CheckMatrix(view));
    ASSIGN_OR_RETURN(std::byte * data, memory_.Allocate(view.size_bytes()));
    RETURN_IF_ERROR(QueueUpload(view.data, view.size_bytes(), data));
    return Matrix{view.dtype, static_cast<int32_t>(view.shape.dim(0)),
                  static_cast<int32_t>(view.shape.dim(1)), data};
  }

  absl::StatusOr<Matrix> PlaceInt8Matrix(const TensorView& view) override {
    RETURN_IF_ERROR(CheckMatrix(view));
    const auto rows = static_cast<size_t>(view.shape.dim(0));
    const auto cols = static_cast<int32_t>(view.shape.dim(1));
    const auto groups = static_cast<size_t>(Int8Groups(cols));
    ASSIGN_OR_RETURN(std::byte * codes, memory_.Allocate(rows * static_cast<size_t>(cols)));
    ASSIGN_OR_RETURN(std::byte * scales, memory_.Allocate(rows * groups * sizeof(float)));
    const size_t row_bytes = view.size_bytes() / rows;
    if (row_bytes > StagedCopies::kBufferBytes) {
      return StatusF(absl::StatusCode::kUnimplemented,
                     "8-bit matrix: a row of {} bytes, at most {} is supported", row_bytes,
                     StagedCopies::kBufferBytes);
    }
    // Pieces of whole rows, to codes on the device.
    const size_t rows_at_once = StagedCopies::kBufferBytes / row_bytes;
    for (size_t first = 0; first < rows; first += rows_at_once) {
      const size_t some = std::min(rows_at_once, rows - first);
      ASSIGN_OR_RETURN(std::byte * values, staged_copies_->DeviceBuffer());
      RETURN_IF_ERROR(QueueUpload(view.data + first * row_bytes, some * row_bytes, values));
      Done(QuantizeInt8Rows(values, view.dtype == DType::kBF16, static_cast<int64_t>(some), cols,
                            As<int8_t>(codes + first * static_cast<size_t>(cols)),
                            As<float>(scales) + first * groups, stream_),
           "quantize", static_cast<int32_t>(some), cols);
    }
    RETURN_IF_ERROR(status_);
    return Matrix{DType::kI8, static_cast<int32_t>(rows), cols, codes, As<float>(scales)};
  }

  absl::StatusOr<Matrix> PlaceInt8Codes(const Matrix& codes) override {
    const auto rows = static_cast<size_t>(codes.rows);
    const size_t code_bytes = rows * static_cast<size_t>(codes.cols);
    const size_t scale_bytes = rows * static_cast<size_t>(Int8Groups(codes.cols)) * sizeof(float);
    ASSIGN_OR_RETURN(std::byte * data, memory_.Allocate(code_bytes));
    ASSIGN_OR_RETURN(std::byte * scales, memory_.Allocate(scale_bytes));
    RETURN_IF_ERROR(QueueUpload(codes.data, code_bytes, data));
    RETURN_IF_ERROR(QueueUpload(codes.scales, scale_bytes, scales));
    Done(PairCodes(As<int8_t>(data), codes.rows, codes.cols, stream_), "pair codes", codes.rows,
         codes.cols);
    RETURN_IF_ERROR(status_);
    return Matrix{DType::kI8, codes.rows, codes.cols, data, As<float>(scales)};
  }

  absl::StatusOr<Matrix> PlaceTable(const TensorView& view) override {
    RETURN_IF_ERROR(CheckMatrix(view));
    ASSIGN_OR_RETURN(std::byte * data,
                     memory_.AllocatePinned(view.size_bytes(), /*cleared=*/false));
    staged_copies_->CopyOnHost(view.data, view.size_bytes(), data);
    return Matrix{view.dtype, static_cast<int32_t>(view.shape.dim(0)),
                  static_cast<int32_t>(view.shape.dim(1)), data};
  }
  bool TablesInHostMemory() const override { return true; }

  absl::StatusOr<const float*> PlaceVector(std::span<const float> values) override {
    ASSIGN_OR_RETURN(std::byte * data, memory_.Allocate(values.size_bytes()));
    RETURN_IF_ERROR(QueueUpload(values.data(), values.size_bytes(), data));
    return reinterpret_cast<const float*>(data);
  }

  size_t ScratchBytes(const OpLimits& limits) const override {
    static_assert(PartialFloats(256) == CudaPartialFloats(256));
    static_assert(sizeof(ChunkKeys) == kCudaChunkKeyBytes &&
                  sizeof(ChunkGates) == kCudaChunkGateBytes);
    return CudaScratchBytes(limits);
  }

  absl::Status Reserve(const OpLimits& limits) override {
    RETURN_IF_ERROR(CheckLimits(limits));
    RETURN_IF_ERROR(EndLoan());
    CHECK(limits.max_parts >= 1 && limits.max_parts <= kMaxStepParts);
    for (int32_t part = 0; part < limits.max_parts; ++part) {
      RETURN_IF_ERROR(parts_[part].Reserve(limits, &memory_));
    }
    ASSIGN_OR_RETURN(work_, memory_.Allocate(CudaOperationBytes(limits)));
    if (limits.attention.num_heads > 0) {
      partial_capacity_ = CudaPartialBytes(limits) / CudaPartialPageBytes(limits.attention);
    }
    top_scratch_bytes_ = CudaTopLogitsBytes(limits);
    CHECK(top_scratch_bytes_ == TopScratchBytes(limits.max_logits_rows, limits.vocab_size));
    chunk_gates_ = reinterpret_cast<ChunkGates*>(
        As<ChunkKeys>(work_) + int64_t{CudaDeltaChunks(limits)} * limits.delta_net.num_key_heads);
    split_bytes_ = static_cast<int64_t>(CudaSplitBytes(limits));
    if (limits.host_experts.width > 0) {
      ASSIGN_OR_RETURN(host_experts_, HostExpertStream::Create(limits, &memory_, work_, stream_));
    }
    RETURN_IF_ERROR(memory_.CheckUsedUp());
    return Synchronize();
  }

  void BeginPart(int32_t part, const StepPlan& plan) override {
    CHECK(part >= 0 && part < kMaxStepParts);
    part_ = part;
    if (!status_.ok()) return;
    // The engine's thread is not the one that made the backend.
    prefetch_ = Prefetch();
    if (collective_ != nullptr && !Check().ok()) return;
    Done(cudaSetDevice(facts_.ordinal), "begin_step", plan.num_rows, 0);
    Done(upload().Begin(plan, handover_->queued(), stream_), "begin_step", plan.num_rows, 0);
  }
  void UsePart(int32_t part) override {
    CHECK(part >= 0 && part < kMaxStepParts);
    part_ = part;
  }

  absl::Status Synchronize() override {
    if (!status_.ok()) return status_;
    if (cudaError_t error = WaitForStream(); error != cudaSuccess) {
      if (error == cudaErrorNotReady) {
        Fail(collective_->status());
        return status_;
      }
      Fail(CudaStatus(error, fmt::format("GPU {} ({}), last queued: {} [{}, {}]", facts_.ordinal,
                                         facts_.name, last_op_, last_rows_, last_width_)));
    } else if (collective_ != nullptr) {
      // What an aborted group left is worth nothing.
      if (absl::Status group = collective_->status(); !group.ok()) Fail(std::move(group));
    }
    handover_->CountAllAwaited();
    return status_;
  }

  absl::Status Check() override {
    if (!status_.ok()) return status_;
    if (collective_ != nullptr) {
      if (absl::Status group = collective_->status(); !group.ok()) Fail(std::move(group));
    }
    const cudaError_t error = cudaStreamQuery(stream_);
    if (status_.ok() && error != cudaSuccess && error != cudaErrorNotReady) {
      return Synchronize();  // which says what was queued last
    }
    return status_;
  }

  void CopyToHost(std::span<const SharedCopy> copies) override {
    CHECK(copies.size() <= kMaxSharedCopies);
    if (status_.ok()) {
      handover_->QueueToHost(copies, [this](cudaError_t error, int32_t num_copies, int32_t bytes) {
        Done(error, "copy_to_host", num_copies, bytes);
      });
    }
    CountToHost();
  }
  void CopyToDevice(std::span<const SharedCopy> copies) override {
    CHECK(copies.size() <= kMaxSharedCopies);
    if (!status_.ok()) return;
    handover_->QueueToDevice(copies, NextTurn(),
                             [this](cudaError_t error, int32_t num_copies, int32_t bytes) {
                               Done(error, "copy_to_device", num_copies, bytes);
                             });
  }

  absl::Status AwaitHost() override {
    if (!status_.ok()) return status_;
    return handover_->Await([this] { return StreamDone(); });
  }
  void ReleaseToDevice() override { handover_->Release(); }

  // A step in which every sequence decodes one token.
  Recording BeginRecording() override {
    if (!status_.ok()) return Recording::kNo;
    const StepTables& step = upload().tables();
    const auto shape = StepRecordings::ShapeOf(step, upload().num_partials());
    if (!shape.has_value()) return Recording::kNo;
    if (const auto* recorded = recordings_.Find(*shape); recorded != nullptr) {
      StartRecording(*recorded);
      return Recording::kReplayed;
    }
    if (recordings_.full() || shape->num_partials > partial_capacity_) return Recording::kNo;
    Done(recordings_.Begin(*shape, stream_), "begin_recording", step.num_rows, step.num_tiles);
    return status_.ok() ? Recording::kRecord : Recording::kNo;
  }

  void EndRecording() override {
    const StepShape shape = recordings_.shape();
    Done(recordings_.End(status_.ok(), stream_), "end_recording", shape.num_rows, 0);
    if (status_.ok()) StartRecording(*recordings_.Find(shape));
  }

  void Embed(const Matrix& table, float* out) override {
    if (!status_.ok()) return;
    CHECK(table.dtype != DType::kI8);
    const StepTables& step = upload().tables();
    Done(cuda::Embed({.data = table.data,
                      .bf16 = table.dtype == DType::kBF16,
                      .first = table.first_row,
                      .rows = table.rows,
                      .n = table.cols},
                     step.token_ids, step.num_rows, out, stream_),
         "embed", step.num_rows, table.cols);
  }

  void Linear(int32_t num_rows, std::span<const LinearArgs> calls) override {
    CHECK(calls.size() <= kMaxLinearCalls);
    if (!status_.ok() || calls.empty()) return;
    LinearMatrix matrices[kMaxLinearCalls];
    for (size_t i = 0; i < calls.size(); ++i) {
      matrices[i] = ToLaunch(calls[i].x, *calls[i].w, calls[i].y);
    }
    Done(cuda::Linear(matrices, static_cast<int>(calls.size()), num_rows, Tuning(), stream_),
         "linear", num_rows, calls[0].w->rows);
  }

  void RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight, const float* addend,
               float* x, float* out) override {
    if (!status_.ok()) return;
    Done(cuda::RmsNorm(num_rows, n, eps, weight, addend, x, out, stream_), "rms_norm", num_rows, n);
  }

  void CausalConv(const CausalConvArgs& a) override {
    if (!status_.ok()) return;
    Done(cuda::CausalConv(upload().tables(), ToLaunch(a), stream_), "causal_conv",
         upload().tables().num_rows, a.shape.conv_dim());
  }

  void DeltaNet(const DeltaNetArgs& a) override {
    if (!status_.ok()) return;
    DeltaLaunch launch = ToLaunch(a);
    launch.chunk_keys = As<ChunkKeys>(work_);
    launch.chunk_gates = chunk_gates_;
    const StepTables& step = upload().tables();
    const int32_t width = a.shape.value_dim();
    Done(DeltaNetDecode(step, launch, stream_), "delta_net_decode", step.num_rows, width);
    for (const ChunkRange& range : upload().chunk_ranges()) {
      Done(DeltaNetChunks(step, launch, range, stream_), "delta_net_chunks", step.num_rows, width);
      Done(DeltaNetPrefill(step, launch, range, stream_), "delta_net_prefill", step.num_rows,
           width);
    }
    Done(GatedNorm(step, launch, stream_), "gated_norm", step.num_rows, width);
  }

  void ConvDeltaNet(const CausalConvArgs& conv, const DeltaNetArgs& delta) override {
    if (!TakesDeltaNetStep(upload().tables(), ToDeviceShape(delta.shape))) {
      return Backend::ConvDeltaNet(conv, delta);
    }
    if (!status_.ok()) return;
    const int32_t rows = upload().tables().num_rows;
    // A recorded step is a step of its own, and goes through a layer once.
    Done(DeltaNetStep(upload().tables(), ToLaunch(conv), ToLaunch(delta), recordings_.recording(),
                      facts_.num_sms, stream_),
         "delta_net_step", rows, delta.shape.value_dim());
  }

  void PrepareAttention(const AttentionArgs& args) override {
    if (!status_.ok()) return;
    Done(cuda::PrepareAttention(upload().tables(), ToLaunch(args), stream_), "prepare_attention",
         upload().tables().num_rows, args.shape.num_heads * args.shape.head_dim);
  }

  void PagedAttention(const AttentionArgs& args) override {
    if (!status_.ok()) return;
    const StepTables& step = upload().tables();
    const int32_t width = args.shape.num_heads * args.shape.head_dim;
    if (recordings_.recording()) {
      const TileRange all = {.num_tiles = step.num_tiles,
                             .num_partials = recordings_.shape().num_partials};
      Done(PagedAttentionSplit(step, ToLaunch(args), all, As<float>(work_), stream_),
           "paged_attention_split", step.num_rows, width);
      return;
    }
    // A warp for each of a multiprocessor's quarters.
    const int64_t enough = int64_t{facts_.num_sms} * 4;
    if (int64_t{step.num_tiles} * args.shape.num_kv_heads >= enough) {
      Done(cuda::PagedAttention(step, ToLaunch(args), stream_), "paged_attention", step.num_rows,
           width);
      return;
    }
    const auto& tiles = upload().tiles();
    for (size_t first = 0; first < tiles.size();) {
      TileRange range = {.first_tile = static_cast<int32_t>(first),
                         .first_partial = tiles[first].first_partial};
      size_t next = first;
      while (next < tiles.size() &&
             range.num_partials + tiles[next].num_pages <= partial_capacity_) {
        range.num_partials += tiles[next++].num_pages;
      }
      CHECK(next > first);
      range.num_tiles = static_cast<int32_t>(next - first);
      Done(PagedAttentionSplit(step, ToLaunch(args), range, As<float>(work_), stream_),
           "paged_attention_split", step.num_rows, width);
      first = next;
    }
  }

  void RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                  const float* logits, uint16_t* ids, float* weights) override {
    CHECK(num_experts <= kMaxExperts && top_k <= num_experts);
    if (!status_.ok()) return;
    Done(cuda::RouterTopK(num_rows, num_experts, top_k, renormalize, logits, ids, weights, stream_),
         "router_topk", num_rows, num_experts);
  }

  void Swiglu(int32_t num_rows, int32_t n, const float* gate, const float* up,
              float* out) override {
    if (!status_.ok()) return;
    Done(cuda::Swiglu(int64_t{num_rows} * n, gate, up, out, stream_), "swiglu", num_rows, n);
  }

  void MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                  const float* gate_logit, float* hidden) override {
    if (!status_.ok()) return;
    Done(cuda::MoeCombine(num_rows, n, routed, shared, gate_logit, hidden, stream_), "moe_combine",
         num_rows, n);
  }

  // A kernel's first tiles are on their way as soon as it is there, which is early: what comes
  // after them is brought to the second-level cache.
  void WillRead(std::span<const Matrix* const> matrices) override {
    prefetch_ = Prefetch();
    int64_t skip = int64_t{facts_.num_sms} * kEarlyRows;
    int64_t left = facts_.l2_bytes / 2;
    for (const Matrix* m : matrices) {
      const int64_t row_bytes = m->cols * static_cast<int64_t>(DTypeSizeBytes(m->dtype));
      const int64_t first = std::min<int64_t>(skip, m->rows);
      skip -= first;
      const int64_t bytes = std::min(left, (m->rows - first) * row_bytes) / 16 * 16;
      if (bytes == 0 || first * row_bytes % 16 != 0) continue;
      if (prefetch_.num_ranges == kMaxPrefetchRanges) break;
      prefetch_.ranges[prefetch_.num_ranges++] = {m->data + first * row_bytes, bytes};
      left -= bytes;
    }
  }

  void RouteToHost(int32_t num_rows, const RouteArgs& a) override {
    if (!TakesRouteAndHand(num_rows, a.hidden_size)) return Backend::RouteToHost(num_rows, a);
    CHECK(a.num_experts <= kMaxExperts && a.top_k <= a.num_experts);
    if (!status_.ok()) return;
    Done(RouteAndHand(num_rows,
                      {.num_experts = a.num_experts,
                       .top_k = a.top_k,
                       .renormalize = a.renormalize,
                       .hidden_size = a.hidden_size,
                       .logits = a.logits,
                       .input = a.input,
                       .ids = As<uint16_t>(a.ids.device),
                       .weights = As<float>(a.weights.device),
                       .bf16_rows = a.rows_dtype == DType::kBF16,
                       .host_rows = a.rows.host,
                       .host_ids = As<uint16_t>(a.ids.host),
                       .host_weights = As<float>(a.weights.host),
                       .state = handover_->state(),
                       .flags = handover_->flags()},
                      stream_),
         "route_to_host", num_rows, a.num_experts);
    CountToHost();
  }

  void CombineFromHost(int32_t num_rows, const CombineArgs& a) override {
    if (!TakesCombine(a.hidden_size)) return Backend::CombineFromHost(num_rows, a);
    if (!status_.ok()) return;
    CombineLaunch launch = {.routed = As<const float4>(a.routed.host),
                            .shared = reinterpret_cast<const float4*>(a.shared),
                            .gate_logit = a.gate_logit};
    const size_t bytes =
        static_cast<size_t>(num_rows) * static_cast<size_t>(a.hidden_size) * sizeof(float);
    if (bytes > HostHandover::kMappedReadAtOnceBytes) {
      const SharedCopy copies[] = {{a.routed, bytes}};
      CopyToDevice(copies);
      launch.routed = As<const float4>(a.routed.device);
    } else {
      launch.state = handover_->state();
      launch.flags = handover_->flags();
      launch.turn = NextTurn();
    }
    Done(CombineNorm(num_rows, a.hidden_size, a.eps, a.norm_weight, launch, a.hidden, a.normed,
                     TakePrefetch(num_rows), stream_),
         "combine_from_host", num_rows, a.hidden_size);
  }

  void SwigluLinear(int32_t num_rows, float* gate, const float* up, const Matrix& w,
                    float* y) override {
    LinearMatrix matrix = ToLaunch(gate, w, y);
    if (!TakesSwiglu(matrix, num_rows, Tuning()))
      return Backend::SwigluLinear(num_rows, gate, up, w, y);
    if (!status_.ok()) return;
    matrix.up = up;
    Done(cuda::Linear(&matrix, 1, num_rows, Tuning(), stream_), "swiglu_linear", num_rows, w.rows);
  }

  void AllReduce(float* x, int64_t count) override {
    if (collective_ == nullptr || !status_.ok()) return;
    const absl::Status queued = collective_->AllReduce(x, count, As<float>(work_), stream_);
    last_op_ = "all_reduce";
    last_rows_ = 1;
    last_width_ = static_cast<int32_t>(count);
    if (!queued.ok()) {
      Fail(Annotate(
          queued, fmt::format("GPU {} ({}), all_reduce [{}]", facts_.ordinal, facts_.name, count)));
    }
  }

  void CopyWithin(const void* from, size_t bytes, void* to) override {
    if (!status_.ok()) return;
    Done(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy_within", 1,
         static_cast<int32_t>(bytes));
  }

  absl::StatusOr<double> MapHost(std::span<const std::byte> memory) override {
    CHECK(host_experts_ != nullptr);
    RETURN_IF_ERROR(status_);
    return host_experts_->Map(memory);
  }

  void HostExperts(int32_t num_rows, const HostExpertsArgs& a) override {
    CHECK(host_experts_ != nullptr);
    if (!status_.ok()) return;
    // Few rows went to the host alone.
    std::byte* const rows =
        TakesRouteAndHand(num_rows, a.hidden_size) ? a.rows.host : a.rows.device;
    host_experts_->Queue(a, As<const uint16_t>(rows), [&](cudaError_t error, int32_t pairs) {
      Done(error, "host_experts", pairs, a.width);
    });
  }

  void WillReadHostExperts(const HostExpertWeights& next) override {
    CHECK(host_experts_ != nullptr);
    if (!status_.ok()) return;
    Done(host_experts_->ReadAhead(next), "will_read_host_experts",
         static_cast<int32_t>(next.experts.size()), next.width);
  }

  void RoundRows(int32_t num_rows, int32_t n, const float* x, BF16* out) override {
    if (!status_.ok()) return;
    Done(cuda::RoundToBf16(int64_t{num_rows} * n, x, reinterpret_cast<uint16_t*>(out), stream_),
         "round_rows", num_rows, n);
  }

  void AddRows(int32_t num_rows, int32_t n, const float* addend, float* hidden) override {
    if (!status_.ok()) return;
    Done(cuda::AddRows(int64_t{num_rows} * n, addend, hidden, stream_), "add_rows", num_rows, n);
  }

  void TopLogits(int32_t num_rows, const TopLogitsArgs& a) override {
    CHECK(a.k >= 1 && a.k <= kMaxTopLogits && a.k <= a.num_ids && a.num_ids <= a.vocab_size);
    CHECK(TopScratchBytes(num_rows, a.num_ids) <= top_scratch_bytes_);
    if (!status_.ok()) return;
    Done(cuda::TopLogits(num_rows,
                         {.vocab_size = a.vocab_size,
                          .num_ids = a.num_ids,
                          .k = a.k,
                          .logits = a.logits,
                          .scores = a.scores,
                          .ids = a.ids,
                          .bounded = a.bounded,
                          .scratch = work_},
                         stream_),
         "top_logits", num_rows, a.num_ids);
  }

  void GatherRows(std::span<const int32_t> rows, int32_t n, const float* x, float* out) override {
    if (!status_.ok()) return;
    const auto count = static_cast<int32_t>(rows.size());
    Done(cuda::GatherRows(rows.data(), count, n, x, out, stream_), "gather_rows", count, n);
  }

  absl::Status ReadBack(const void* device, size_t bytes, void* host) override {
    const auto* from = static_cast<const std::byte*>(device);
    auto* to = static_cast<std::byte*>(host);
    for (size_t at = 0; at < bytes; at += StagedCopies::kBufferBytes) {
      const size_t some = std::min(StagedCopies::kBufferBytes, bytes - at);
      if (!status_.ok()) return status_;
      Done(staged_copies_->QueueReadBack(from + at, some), "read_back", 1, 0);
      RETURN_IF_ERROR(Synchronize());
      staged_copies_->CopyOnHost(staged_copies_->read_back(), some, to + at);
    }
    return status_;
  }

  absl::Status ReadBackRows(const void* device, size_t row_bytes, int64_t num_rows,
                            size_t stride_bytes, void* host) override {
    if (stride_bytes == row_bytes || row_bytes > StagedCopies::kBufferBytes) {
      return Backend::ReadBackRows(device, row_bytes, num_rows, stride_bytes, host);
    }
    const auto* from = static_cast<const std::byte*>(device);
    auto* to = static_cast<std::byte*>(host);
    const auto at_once = static_cast<int64_t>(StagedCopies::kBufferBytes / row_bytes);
    for (int64_t first = 0; first < num_rows; first += at_once) {
      const auto some = static_cast<size_t>(std::min(at_once, num_rows - first));
      if (!status_.ok()) return status_;
      Done(staged_copies_->QueueReadBack(from, some * row_bytes), "read_back", 1, 0);
      RETURN_IF_ERROR(Synchronize());
      for (size_t row = 0; row < some; ++row, to += stride_bytes) {
        std::memcpy(to, staged_copies_->read_back() + row * row_bytes, row_bytes);
      }
      from += some * row_bytes;
    }
    return status_;
  }

  absl::Status Upload(const void* host, size_t bytes, void* device) override {
    RETURN_IF_ERROR(QueueUpload(host, bytes, device));
    return Synchronize();
  }

 private:
  StepUpload& upload() { return parts_[part_]; }

  static absl::Status CheckMatrix(const TensorView& view) {
    CHECK(view.shape.rank() == 2);
    if (view.dtype == DType::kBF16 || view.dtype == DType::kF32) return absl::OkStatus();
    return StatusF(absl::StatusCode::kUnimplemented, "matrix of {}: expected BF16 or F32",
                   DTypeName(view.dtype));
  }

  LinearTuning Tuning() const {
    return {.num_sms = facts_.num_sms,
            .shared_bytes = facts_.shared_bytes,
            .clusters = facts_.clusters,
            .hopper = facts_.hopper,
            .split = work_,
            .split_bytes = split_bytes_};
  }

  // What WillRead announced, once.
  Prefetch TakePrefetch(int32_t num_rows) {
    return num_rows <= kMostPrefetchRows ? std::exchange(prefetch_, Prefetch()) : Prefetch();
  }

  static absl::Status CheckLimits(const OpLimits& limits) {
    const auto at_most = [](const char* what, int64_t value, int64_t most) {
      if (value <= most) return absl::OkStatus();
      return StatusF(absl::StatusCode::kUnimplemented,
                     "CUDA backend: {} is {}, at most {} is supported", what, value, most);
    };
    if (limits.attention.cache_dtype != DType::kF32 &&
        limits.attention.cache_dtype != DType::kBF16) {
      return StatusF(absl::StatusCode::kUnimplemented,
                     "CUDA backend: keys and values of {}: expected F32 or BF16",
                     DTypeName(limits.attention.cache_dtype));
    }
    if (limits.host_experts.hidden_size % 8 != 0 || limits.host_experts.width % 8 != 0) {
      return StatusF(absl::StatusCode::kUnimplemented,
                     "CUDA backend: experts of {} x {}: 8 must divide both",
                     limits.host_experts.width, limits.host_experts.hidden_size);
    }
    RETURN_IF_ERROR(at_most("head_dim", limits.attention.head_dim, kMaxAttentionHeadDim));
    RETURN_IF_ERROR(
        at_most("linear_key_head_dim", limits.delta_net.key_head_dim, kMaxDeltaHeadDim));
    RETURN_IF_ERROR(
        at_most("linear_value_head_dim", limits.delta_net.value_head_dim, kMaxDeltaHeadDim));
    return at_most("num_experts", limits.num_experts, kMaxExperts);
  }

  // The outcome of queueing an operation.
  void Done(cudaError_t error, const char* op, int32_t rows, int32_t width) {
    last_op_ = op;
    last_rows_ = rows;
    last_width_ = width;
    if (error == cudaSuccess || !status_.ok()) return;
    Fail(CudaStatus(error, fmt::format("GPU {} ({}), {} [{}, {}]", facts_.ordinal, facts_.name, op,
                                       rows, width)));
  }

  // Until everything queued is done. In a group that is over not for long: a sum may wait for a
  // device that will never come to it. cudaErrorNotReady: it does, and this stream is lost.
  cudaError_t WaitForStream() {
    if (collective_ == nullptr) return cudaStreamSynchronize(stream_);
    absl::Time give_up = absl::InfiniteFuture();
    while (true) {
      for (int query = 0; query < kQueriesPerLook; ++query) {
        const cudaError_t error = cudaStreamQuery(stream_);
        if (error != cudaErrorNotReady) return error;
      }
      if (collective_->status().ok()) continue;
      const absl::Time now = absl::Now();
      if (give_up == absl::InfiniteFuture()) give_up = now + kLastSums;
      if (now > give_up) return cudaErrorNotReady;
    }
  }

  // Nothing more happens here, nor on the GPUs that share the model.
  void Fail(absl::Status why) {
    status_ = std::move(why);
    if (collective_ != nullptr) collective_->Abort(status_);
  }

  // While the host waits for the device: whether everything queued is done.
  absl::StatusOr<bool> StreamDone() {
    const cudaError_t error = cudaStreamQuery(stream_);
    if (error == cudaErrorNotReady) {
      if (collective_ == nullptr) return false;
      absl::Status group = collective_->status();
      if (group.ok()) return false;
      // What is queued goes on, but waits for releases that are still to come.
      Fail(std::move(group));
      return status_;
    }
    // Done or broken: what is to come is there by now.
    RETURN_IF_ERROR(Synchronize());
    return true;
  }

  ReleaseTurn NextTurn() {
    if (!recordings_.recording()) return handover_->NextTurn();
    return {upload().tables().handovers, recordings_.CountToDevice()};
  }

  // One that is recorded comes with each run.
  void CountToHost() {
    if (recordings_.recording()) {
      recordings_.CountToHost();
    } else {
      handover_->CountToHost();
    }
  }

  void StartRecording(const StepRecordings::Recorded& recorded) {
    handover_->CountRecorded(recorded.handovers);
    Done(StepRecordings::Start(recorded, stream_), "recorded_step", upload().tables().num_rows, 0);
  }

  // No more matrices are made to codes: what they passed through is where the next pieces lie.
  absl::Status EndLoan() {
    if (!staged_copies_->on_loan()) return absl::OkStatus();
    RETURN_IF_ERROR(Synchronize());
    return staged_copies_->EndLoan();
  }

  // The host memory may go when this returns.
  absl::Status QueueUpload(const void* host, size_t bytes, void* device) {
    if (!status_.ok() || bytes == 0) return status_;
    Done(staged_copies_->QueueUpload(host, bytes, device), "upload", 1, 0);
    return status_;
  }

  const DeviceFacts facts_;
  Collective* const collective_;
  DeviceMemory memory_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<StagedCopies> staged_copies_;
  Prefetch prefetch_;
  StepUpload parts_[kMaxStepParts];
  int32_t part_ = 0;  // in use
  // CudaOperationBytes, and how each operation uses them.
  std::byte* work_ = nullptr;
  int64_t top_scratch_bytes_ = 0;
  int64_t split_bytes_ = 0;            // of x, by Linear
  int64_t partial_capacity_ = 0;       // pages of attention
  ChunkGates* chunk_gates_ = nullptr;  // behind the keys of as many chunks as are taken at once
  std::unique_ptr<HostExpertStream> host_experts_;  // where they are among the limits
  std::unique_ptr<HostHandover> handover_;
  StepRecordings recordings_;
  absl::Status status_;  // the first fault, kept
  const char* last_op_ = "nothing";
  int32_t last_rows_ = 0;
  int32_t last_width_ = 0;
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options) {
  ASSIGN_OR_RETURN(cuda::DeviceFacts facts, cuda::OpenDevice(options.device));
  auto backend = std::make_unique<cuda::CudaBackend>(std::move(facts), options);
  RETURN_IF_ERROR(backend->Open());
  return backend;
}

bool CudaDevicePresent() { return cuda::HasDevice(); }
int32_t CudaDeviceCount() { return cuda::DeviceCount(); }

}  // namespace banyan::trunk
