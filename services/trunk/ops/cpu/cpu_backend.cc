#include "services/trunk/ops/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/op_scratch.h"
#include "common/quant/bf16.h"
#include "services/trunk/ops/cpu/cpu_tier.h"
#include "services/trunk/ops/cpu/delta_net.h"
#include "services/trunk/ops/cpu/host_experts.h"
#include "services/trunk/ops/cpu/host_memory.h"
#include "services/trunk/ops/cpu/linear.h"
#include "services/trunk/ops/cpu/paged_attention.h"
#include "services/trunk/ops/cpu/parallel.h"
#include "services/trunk/ops/cpu/router_topk.h"
#include "services/trunk/ops/cpu/top_logits.h"
#include "services/trunk/ops/int8_rows.h"

namespace banyan::trunk {
namespace cpu {
namespace {

// An element of a norm or an activation function costs about as much as this many multiply-adds.
constexpr int64_t kNormCost = 8;
constexpr int64_t kExpCost = 24;
constexpr int64_t kQuantizeCost = 16;
constexpr int64_t kTopCost = 8;

// Rows of one tile of element-wise work.
constexpr int64_t kRowsPerTile = 8;

class CpuBackend : public Backend {
 public:
  CpuBackend(const KernelTable& kernels, WorkerPool* pool, Collective* collective)
      : kernels_(kernels), parallel_(pool), collective_(collective) {}

  absl::Status Open() {
    static_assert(kLinearScratchBytes == kCpuLinearBytes);
    ASSIGN_OR_RETURN(
        linear_scratch_,
        memory_.Allocate(kCpuLinearBytes * static_cast<size_t>(parallel_.num_threads())));
    return absl::OkStatus();
  }

  std::string_view name() const override { return kernels_.name; }

  absl::StatusOr<std::byte*> AllocateDevice(size_t bytes) override {
    return memory_.Allocate(bytes);
  }
  absl::StatusOr<SharedBuffer> AllocateShared(size_t bytes) override {
    ASSIGN_OR_RETURN(std::byte * memory, memory_.Allocate(bytes));
    return SharedBuffer{memory, memory};
  }

  absl::StatusOr<std::shared_ptr<std::byte>> AllocateHost(size_t bytes) override {
    constexpr size_t kAlignment = 64;
    void* const memory =
        std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (memory == nullptr) {
      return StatusF(absl::StatusCode::kResourceExhausted, "cannot allocate {} bytes", bytes);
    }
    return std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), std::free);
  }

  absl::StatusOr<Matrix> PlaceMatrix(const TensorView& view) override {
    if (view.dtype != DType::kBF16 && view.dtype != DType::kF32) {
      return StatusF(absl::StatusCode::kUnimplemented, "matrix of {}: expected BF16 or F32",
                     DTypeName(view.dtype));
    }
    CHECK(view.shape.rank() == 2);
    return Matrix{view.dtype, static_cast<int32_t>(view.shape.dim(0)),
                  static_cast<int32_t>(view.shape.dim(1)), view.data};
  }

  absl::StatusOr<Matrix> PlaceInt8Matrix(const TensorView& view) override {
    ASSIGN_OR_RETURN(Matrix matrix, PlaceMatrix(view));
    const int64_t rows = matrix.rows;
    const int64_t groups = Int8Groups(matrix.cols);
    ASSIGN_OR_RETURN(std::byte * codes, memory_.Allocate(static_cast<size_t>(rows) *
                                                         static_cast<size_t>(matrix.cols)));
    ASSIGN_OR_RETURN(std::byte * scales,
                     memory_.Allocate(static_cast<size_t>(rows * groups) * sizeof(float)));
    matrix.dtype = DType::kI8;
    matrix.data = codes;
    matrix.scales = reinterpret_cast<const float*>(scales);
    ForRows(rows, matrix.cols * kQuantizeCost, [&](int64_t row, int) {
      QuantizeInt8Rows(view, row, row + 1, reinterpret_cast<int8_t*>(codes),
                       reinterpret_cast<float*>(scales));
    });
    return matrix;
  }

  absl::StatusOr<Matrix> PlaceInt8Codes(const Matrix& codes) override {
    CHECK(codes.dtype == DType::kI8);
    return codes;
  }

  absl::StatusOr<const float*> PlaceVector(std::span<const float> values) override {
    ASSIGN_OR_RETURN(std::byte * memory, memory_.Allocate(values.size_bytes()));
    std::memcpy(memory, values.data(), values.size_bytes());
    return reinterpret_cast<const float*>(memory);
  }

  size_t ScratchBytes(const OpLimits& limits) const override {
    return CpuScratchBytes(limits, parallel_.num_threads());
  }

  absl::Status Reserve(const OpLimits& limits) override {
    if (limits.attention.cache_dtype != DType::kF32) {
      return StatusF(absl::StatusCode::kUnimplemented,
                     "CPU backend: keys and values of {}: expected F32",
                     DTypeName(limits.attention.cache_dtype));
    }
    scratch_floats_ = CpuThreadFloats(limits);
    const auto threads = static_cast<size_t>(parallel_.num_threads());
    ASSIGN_OR_RETURN(std::byte * memory, memory_.Allocate(static_cast<size_t>(scratch_floats_) *
                                                          sizeof(float) * threads));
    scratch_ = reinterpret_cast<float*>(memory);
    attention_.Reserve(limits, parallel_.num_threads());
    host_experts_.Reserve(limits, parallel_.num_threads());
    top_.resize(threads);
    for (std::vector<ScoredId>& top : top_) top.reserve(kCpuTopLogits);
    return absl::OkStatus();
  }

  void BeginPart(int32_t part, const StepPlan& plan) override {
    CHECK(part >= 0 && part < kMaxStepParts);
    parts_[part] = plan;
    UsePart(part);
  }
  void UsePart(int32_t part) override {
    plan_ = parts_[part];
    attention_.BeginStep(plan_);
  }

  absl::Status Synchronize() override { return status_; }
  void CopyToHost(std::span<const SharedCopy> /*copies*/) override {}
  void CopyToDevice(std::span<const SharedCopy> /*copies*/) override {}
  absl::Status AwaitHost() override { return status_; }
  void ReleaseToDevice() override {}

  void Embed(const Matrix& table, float* out) override {
    const int64_t n = table.cols;
    const int64_t row_bytes = n * static_cast<int64_t>(DTypeSizeBytes(table.dtype));
    CHECK(table.dtype != DType::kI8);
    for (int64_t row = 0; row < plan_.num_rows; ++row) {
      const int64_t at = plan_.token_ids[static_cast<size_t>(row)] - table.first_row;
      float* to = out + row * n;
      if (at < 0 || at >= table.rows) {
        std::fill_n(to, n, 0.0f);
        continue;
      }
      const std::byte* from = table.data + at * row_bytes;
      if (table.dtype == DType::kF32) {
        std::memcpy(to, from, static_cast<size_t>(row_bytes));
        continue;
      }
      for (int64_t i = 0; i < n; ++i) {
        BF16 value;
        std::memcpy(&value, from + i * 2, sizeof(value));
        to[i] = ToFloat(value);
      }
    }
  }

  void Linear(int32_t num_rows, std::span<const LinearArgs> calls) override {
    cpu::Linear(kernels_, parallel_, linear_scratch_, num_rows, calls);
  }

  void RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight, const float* addend,
               float* x, float* out) override {
    ForRows(num_rows, n * kNormCost, [&](int64_t row, int) {
      const int64_t at = row * n;
      kernels_.norm_row({.x = x + at,
                         .addend = addend == nullptr ? nullptr : addend + at,
                         .weight = weight,
                         .n = n,
                         .eps = eps,
                         .out = out + at});
    });
  }

  void CausalConv(const CausalConvArgs& args) override {
    cpu::CausalConv(kernels_, parallel_, plan_, args);
  }

  void DeltaNet(const DeltaNetArgs& args) override {
    cpu::DeltaNet(kernels_, parallel_, plan_, args, scratch_, scratch_floats_);
  }

  void PrepareAttention(const AttentionArgs& args) override {
    attention_.Prepare(kernels_, parallel_, plan_, args);
  }

  void PagedAttention(const AttentionArgs& args) override {
    attention_.Run(kernels_, parallel_, plan_, args);
  }

  void RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                  const float* logits, uint16_t* ids, float* weights) override {
    CHECK(num_experts <= scratch_floats_ && top_k <= num_experts);
    ForRows(num_rows, num_experts * kExpCost, [&](int64_t row, int thread) {
      RouterTopKRow(logits + row * num_experts, num_experts, top_k, renormalize,
                    scratch_ + thread * scratch_floats_, ids + row * top_k, weights + row * top_k);
    });
  }

  void Swiglu(int32_t num_rows, int32_t n, const float* gate, const float* up,
              float* out) override {
    ForRows(num_rows, n * kExpCost, [&](int64_t row, int) {
      kernels_.swiglu(gate + row * n, up + row * n, n, out + row * n);
    });
  }

  void MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                  const float* gate_logit, float* hidden) override {
    ForRows(num_rows, n * 4, [&](int64_t row, int) {
      kernels_.combine_row(routed + row * n, shared + row * n, gate_logit[row], n,
                           hidden + row * n);
    });
  }

  void HostExperts(int32_t /*num_rows*/, const HostExpertsArgs& args) override {
    host_experts_.Run(kernels_, parallel_, args);
  }

  void RoundRows(int32_t num_rows, int32_t n, const float* x, BF16* out) override {
    ForRows(num_rows, n * 4, [&](int64_t row, int) {
      for (int64_t i = row * n; i < (row + 1) * n; ++i) out[i] = ToBF16(x[i]);
    });
  }

  void AddRows(int32_t num_rows, int32_t n, const float* addend, float* hidden) override {
    ForRows(num_rows, n * 4, [&](int64_t row, int) {
      for (int64_t i = row * n; i < (row + 1) * n; ++i) hidden[i] += addend[i];
    });
  }

  void GatherRows(std::span<const int32_t> rows, int32_t n, const float* x, float* out) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(x + int64_t{rows[i]} * n, n, out + static_cast<int64_t>(i) * n);
    }
  }

  void TopLogits(int32_t num_rows, const TopLogitsArgs& a) override {
    CHECK(a.k >= 1 && a.k <= kMaxTopLogits && a.k <= a.num_ids && a.num_ids <= a.vocab_size);
    parallel_.For(num_rows, num_rows * a.num_ids * kTopCost, [&](int64_t row, int thread) {
      const int64_t at = row * a.k;
      a.bounded[row] = TopLogitsRow(a.logits + row * a.vocab_size, a.num_ids, a.k,
                                    &top_[static_cast<size_t>(thread)], a.scores + at, a.ids + at);
    });
  }

  // The first failure is kept; what is computed after it means nothing.
  void AllReduce(float* x, int64_t count) override {
    if (collective_ == nullptr || !status_.ok()) return;
    status_ = collective_->AllReduce(x, count, nullptr, nullptr);
  }
  absl::Status Check() override {
    if (status_.ok() && collective_ != nullptr) status_ = collective_->status();
    return status_;
  }

  void CopyWithin(const void* from, size_t bytes, void* to) override {
    std::memcpy(to, from, bytes);
  }

  absl::Status ReadBack(const void* device, size_t bytes, void* host) override {
    std::memcpy(host, device, bytes);
    return status_;
  }
  absl::Status Upload(const void* host, size_t bytes, void* device) override {
    std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }

 private:
  template <typename Body>
  void ForRows(int64_t num_rows, int64_t cost_per_row, const Body& body) {
    const int64_t tiles = (num_rows + kRowsPerTile - 1) / kRowsPerTile;
    parallel_.For(tiles, num_rows * cost_per_row, [&](int64_t tile, int thread) {
      const int64_t end = std::min(num_rows, (tile + 1) * kRowsPerTile);
      for (int64_t row = tile * kRowsPerTile; row < end; ++row) body(row, thread);
    });
  }

  const KernelTable& kernels_;
  const Parallel parallel_;
  Collective* const collective_;
  absl::Status status_;  // of the collective
  HostMemory memory_;
  cpu::PagedAttention attention_;
  cpu::HostExperts host_experts_;
  StepPlan parts_[kMaxStepParts];
  StepPlan plan_;                        // of the part in use
  std::byte* linear_scratch_ = nullptr;  // kCpuLinearBytes for each thread
  float* scratch_ = nullptr;             // scratch_floats_ for each thread
  int64_t scratch_floats_ = 0;
  std::vector<std::vector<ScoredId>> top_;  // of each thread
};

}  // namespace
}  // namespace cpu

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options,
                                                          WorkerPool* pool) {
  const cpu::KernelTable* kernels = options.kernels;
  if (kernels == nullptr) {
    ASSIGN_OR_RETURN(kernels, cpu::FindKernels(options.cpu_tier));
  }
  auto backend = std::make_unique<cpu::CpuBackend>(*kernels, pool, options.collective);
  RETURN_IF_ERROR(backend->Open());
  return backend;
}

}  // namespace banyan::trunk
