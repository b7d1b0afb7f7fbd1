#include "tests/fakes/host_array_backend.h"

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "common/base/check.h"

namespace banyan::test {
namespace {

using namespace trunk;  // NOLINT: every name here is one of ops.h

void CheckOk(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  CHECK(status.ok());
}

class HostArrayBackend : public Backend {
 public:
  explicit HostArrayBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string_view name() const override { return inner_->name(); }
  absl::StatusOr<std::byte*> AllocateDevice(size_t bytes) override {
    return inner_->AllocateDevice(bytes);
  }
  absl::StatusOr<SharedBuffer> AllocateShared(size_t bytes) override {
    return inner_->AllocateShared(bytes);
  }
  absl::StatusOr<std::shared_ptr<std::byte>> AllocateHost(size_t bytes) override {
    return inner_->AllocateHost(bytes);
  }
  absl::StatusOr<Matrix> PlaceMatrix(const TensorView& view) override {
    return inner_->PlaceMatrix(view);
  }
  absl::StatusOr<Matrix> PlaceInt8Matrix(const TensorView& view) override {
    return inner_->PlaceInt8Matrix(view);
  }
  absl::StatusOr<Matrix> PlaceInt8Codes(const Matrix& codes) override {
    return inner_->PlaceInt8Codes(codes);
  }
  absl::StatusOr<const float*> PlaceVector(std::span<const float> values) override {
    return inner_->PlaceVector(values);
  }
  absl::StatusOr<double> MapHost(std::span<const std::byte> memory) override {
    return inner_->MapHost(memory);
  }
  absl::Status Reserve(const OpLimits& limits) override {
    reserved_ = true;
    return inner_->Reserve(limits);
  }
  size_t ScratchBytes(const OpLimits& limits) const override {
    return inner_->ScratchBytes(limits);
  }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  void CopyToHost(std::span<const SharedCopy> copies) override { inner_->CopyToHost(copies); }
  void CopyToDevice(std::span<const SharedCopy> copies) override { inner_->CopyToDevice(copies); }
  absl::Status AwaitHost() override { return inner_->AwaitHost(); }
  void ReleaseToDevice() override { inner_->ReleaseToDevice(); }
  void CopyWithin(const void* from, size_t bytes, void* to) override {
    const auto* const source = In(static_cast<const std::byte*>(from), static_cast<int64_t>(bytes));
    inner_->CopyWithin(source, bytes,
                       Out(static_cast<std::byte*>(to), static_cast<int64_t>(bytes)));
    Finish();
  }
  absl::Status ReadBack(const void* device, size_t bytes, void* host) override {
    return inner_->ReadBack(device, bytes, host);
  }
  absl::Status Upload(const void* host, size_t bytes, void* device) override {
    return inner_->Upload(host, bytes, device);
  }

  void BeginPart(int32_t part, const StepPlan& plan) override {
    parts_[part] = plan;
    EnsureReserved();
    inner_->BeginPart(part, plan);
    Measure(plan);
  }
  void UsePart(int32_t part) override {
    inner_->UsePart(part);
    Measure(parts_[part]);
  }

  void Embed(const Matrix& table, float* out) override {
    // Rows up to the largest id are unknown here: the whole table travels.
    const Matrix placed = Place(table);
    inner_->Embed(placed, Out(out, int64_t{num_rows_} * table.cols));
    Finish();
  }

  void Linear(int32_t num_rows, std::span<const LinearArgs> calls) override {
    EnsureReserved();
    std::vector<Matrix> matrices;
    for (const LinearArgs& call : calls) matrices.push_back(Place(*call.w));
    std::vector<LinearArgs> placed;
    for (size_t i = 0; i < calls.size(); ++i) {
      placed.push_back({.x = In(calls[i].x, int64_t{num_rows} * calls[i].w->cols),
                        .w = &matrices[i],
                        .y = Out(calls[i].y, int64_t{num_rows} * calls[i].w->rows)});
    }
    inner_->Linear(num_rows, placed);
    Finish();
  }

  void RmsNorm(int32_t num_rows, int32_t n, float eps, const float* weight, const float* addend,
               float* x, float* out) override {
    const int64_t count = int64_t{num_rows} * n;
    inner_->RmsNorm(num_rows, n, eps, In(weight, n), In(addend, count), Out(x, count),
                    Out(out, count));
    Finish();
  }

  void CausalConv(const CausalConvArgs& a) override {
    const int64_t rows = num_rows_;
    CausalConvArgs p = PlaceConv(a);
    p.qkv = Out(a.qkv, rows * a.shape.conv_dim());
    p.log_decay = Out(a.log_decay, rows * a.shape.num_value_heads);
    p.beta = Out(a.beta, rows * a.shape.num_value_heads);
    inner_->CausalConv(p);
    Finish();
  }

  void DeltaNet(const DeltaNetArgs& a) override {
    const DeltaNetShape& s = a.shape;
    const int64_t rows = num_rows_;
    DeltaNetArgs p = PlaceDelta(a);
    p.qkv = In(a.qkv, rows * s.conv_dim());
    p.qkvz = In(a.qkvz, rows * s.qkvz_dim());
    p.log_decay = In(a.log_decay, rows * s.num_value_heads);
    p.beta = In(a.beta, rows * s.num_value_heads);
    inner_->DeltaNet(p);
    Finish();
  }

  void PrepareAttention(const AttentionArgs& args) override {
    inner_->PrepareAttention(PlaceAttention(args));
    Finish();
  }
  void PagedAttention(const AttentionArgs& args) override {
    inner_->PagedAttention(PlaceAttention(args));
    Finish();
  }

  void RouterTopK(int32_t num_rows, int32_t num_experts, int32_t top_k, bool renormalize,
                  const float* logits, uint16_t* ids, float* weights) override {
    inner_->RouterTopK(
        num_rows, num_experts, top_k, renormalize, In(logits, int64_t{num_rows} * num_experts),
        Out(ids, int64_t{num_rows} * top_k), Out(weights, int64_t{num_rows} * top_k));
    Finish();
  }

  void Swiglu(int32_t num_rows, int32_t n, const float* gate, const float* up,
              float* out) override {
    const int64_t count = int64_t{num_rows} * n;
    inner_->Swiglu(num_rows, n, In(gate, count), In(up, count), Out(out, count));
    Finish();
  }

  void MoeCombine(int32_t num_rows, int32_t n, const float* routed, const float* shared,
                  const float* gate_logit, float* hidden) override {
    const int64_t count = int64_t{num_rows} * n;
    inner_->MoeCombine(num_rows, n, In(routed, count), In(shared, count), In(gate_logit, num_rows),
                       Out(hidden, count));
    Finish();
  }

  void ConvDeltaNet(const CausalConvArgs& conv, const DeltaNetArgs& delta) override {
    const DeltaNetShape& s = conv.shape;
    const int64_t rows = num_rows_;
    CausalConvArgs c = PlaceConv(conv);
    // Scratch here: what is left in it is nobody's business.
    c.qkv = ScratchLike(conv.qkv, rows * s.conv_dim());
    c.log_decay = ScratchLike(conv.log_decay, rows * s.num_value_heads);
    c.beta = ScratchLike(conv.beta, rows * s.num_value_heads);
    DeltaNetArgs d = PlaceDelta(delta);
    d.qkv = c.qkv;
    d.qkvz = c.qkvz;
    d.log_decay = c.log_decay;
    d.beta = c.beta;
    inner_->ConvDeltaNet(c, d);
    Finish();
  }

  void SwigluLinear(int32_t num_rows, float* gate, const float* up, const Matrix& w,
                    float* y) override {
    EnsureReserved();
    const Matrix placed = Place(w);
    const int64_t count = int64_t{num_rows} * w.cols;
    inner_->SwigluLinear(num_rows, Out(gate, count), In(up, count), placed,
                         Out(y, int64_t{num_rows} * w.rows));
    Finish();
  }

  // `rows` is a shared buffer's two sides; weights are host memory, mapped by whoever calls.
  void HostExperts(int32_t num_rows, const HostExpertsArgs& args) override {
    HostExpertsArgs p = args;
    p.hidden = Out(args.hidden, int64_t{num_rows} * args.hidden_size);
    inner_->HostExperts(num_rows, p);
    Finish();
  }

  void RoundRows(int32_t num_rows, int32_t n, const float* x, BF16* out) override {
    const int64_t count = int64_t{num_rows} * n;
    inner_->RoundRows(num_rows, n, In(x, count), Out(out, count));
    Finish();
  }

  void AddRows(int32_t num_rows, int32_t n, const float* addend, float* hidden) override {
    const int64_t count = int64_t{num_rows} * n;
    inner_->AddRows(num_rows, n, In(addend, count), Out(hidden, count));
    Finish();
  }

  void TopLogits(int32_t num_rows, const TopLogitsArgs& args) override {
    TopLogitsArgs p = args;
    p.logits = In(args.logits, int64_t{num_rows} * args.vocab_size);
    p.scores = Out(args.scores, int64_t{num_rows} * args.k);
    p.ids = Out(args.ids, int64_t{num_rows} * args.k);
    p.bounded = Out(args.bounded, num_rows);
    inner_->TopLogits(num_rows, p);
    Finish();
  }

  void GatherRows(std::span<const int32_t> rows, int32_t n, const float* x, float* out) override {
    int64_t most = 0;
    for (int32_t row : rows) most = std::max<int64_t>(most, row + 1);
    inner_->GatherRows(rows, n, In(x, most * n), Out(out, static_cast<int64_t>(rows.size()) * n));
    Finish();
  }

 private:
  struct Result {
    std::byte* device;
    void* host;
    size_t bytes;
  };

  std::byte* Bring(const void* host, size_t bytes) {
    constexpr size_t kAlignment = 256;
    constexpr size_t kPoolBytes = size_t{1} << 30;
    if (pool_ == nullptr) {
      auto pool = inner_->AllocateDevice(kPoolBytes);
      CheckOk(pool.status());
      pool_ = *pool;
    }
    std::byte* const device = pool_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    CHECK(used_ <= kPoolBytes);
    CheckOk(inner_->Upload(host, bytes, device));
    return device;
  }

  template <typename T>
  const T* In(const T* host, int64_t count) {
    if (host == nullptr || count == 0) return host;
    return reinterpret_cast<const T*>(Bring(host, static_cast<size_t>(count) * sizeof(T)));
  }

  void EnsureReserved() {
    if (reserved_) return;
    CheckOk(Reserve({.max_rows = 4200,
                     .max_segments = 64,
                     .max_position = 8192,
                     .num_experts = kMaxExperts,
                     .attention = {},
                     .delta_net = {},
                     .max_columns = 4096,
                     .max_parts = kMaxStepParts}));
  }

  // Brought over too, so that what the operation leaves alone stays as it was.
  template <typename T>
  T* Out(T* host, int64_t count) {
    if (host == nullptr || count == 0) return host;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    std::byte* const device = Bring(host, bytes);
    results_.push_back({device, host, bytes});
    return reinterpret_cast<T*>(device);
  }

  float* ScratchLike(const float* host, int64_t count) {
    return reinterpret_cast<float*>(Bring(host, static_cast<size_t>(count) * sizeof(float)));
  }

  Matrix Place(const Matrix& m) {
    if (m.dtype == DType::kI8) {  // lies as the backend wants it
      const auto codes = inner_->PlaceInt8Codes(m);
      CheckOk(codes.status());
      return *codes;
    }
    Matrix placed = m;
    placed.data = Bring(m.data, static_cast<size_t>(m.rows) * static_cast<size_t>(m.cols) *
                                    DTypeSizeBytes(m.dtype));
    return placed;
  }

  // Less qkv, log_decay and beta, which the recurrence reads.
  CausalConvArgs PlaceConv(const CausalConvArgs& a) {
    const DeltaNetShape& s = a.shape;
    const int64_t rows = num_rows_;
    CausalConvArgs p = a;
    p.qkvz = In(a.qkvz, rows * s.qkvz_dim());
    p.ba = In(a.ba, rows * 2 * s.num_value_heads);
    p.weight = In(a.weight, int64_t{s.conv_taps} * s.conv_dim());
    p.neg_decay_rate = In(a.neg_decay_rate, s.num_value_heads);
    p.dt_bias = In(a.dt_bias, s.num_value_heads);
    p.conv_states = Out(a.conv_states, num_slots_ * s.conv_state_floats());
    return p;
  }

  // Less qkv, qkvz, log_decay and beta.
  DeltaNetArgs PlaceDelta(const DeltaNetArgs& a) {
    const DeltaNetShape& s = a.shape;
    DeltaNetArgs p = a;
    p.norm_weight = In(a.norm_weight, s.value_head_dim);
    p.states = Out(a.states, num_slots_ * s.state_floats());
    p.out = Out(a.out, num_rows_ * s.value_dim());
    return p;
  }

  AttentionArgs PlaceAttention(const AttentionArgs& a) {
    const AttentionShape& s = a.shape;
    const int64_t rows = num_rows_;
    AttentionArgs p = a;
    p.q_gate = Out(a.q_gate, rows * s.num_heads * 2 * s.head_dim);
    p.k = Out(a.k, rows * s.num_kv_heads * s.head_dim);
    p.v = In(a.v, rows * s.num_kv_heads * s.head_dim);
    p.q_norm = In(a.q_norm, s.head_dim);
    p.k_norm = In(a.k_norm, s.head_dim);
    const int64_t page_bytes =
        a.page_elements() * static_cast<int64_t>(DTypeSizeBytes(s.cache_dtype));
    p.key_pages = Out(static_cast<std::byte*>(a.key_pages), num_pages_ * page_bytes);
    p.value_pages = Out(static_cast<std::byte*>(a.value_pages), num_pages_ * page_bytes);
    p.out = Out(a.out, rows * s.num_heads * s.head_dim);
    return p;
  }

  void Measure(const StepPlan& plan) {
    num_rows_ = plan.num_rows;
    num_slots_ = 0;
    num_pages_ = 0;
    for (const PlanSegment& s : plan.segments) num_slots_ = std::max(num_slots_, s.slot + 1);
    for (int32_t page : plan.page_ids) num_pages_ = std::max(num_pages_, page + 1);
  }

  void Finish() {
    CheckOk(inner_->Synchronize());
    for (const Result& r : results_) CheckOk(inner_->ReadBack(r.device, r.bytes, r.host));
    results_.clear();
    used_ = 0;
  }

  std::unique_ptr<Backend> inner_;
  bool reserved_ = false;
  StepPlan parts_[kMaxStepParts];
  int32_t num_rows_ = 0;  // of the plan in use
  int32_t num_slots_ = 0;
  int32_t num_pages_ = 0;
  std::byte* pool_ = nullptr;
  size_t used_ = 0;
  std::vector<Result> results_;
};

}  // namespace

std::unique_ptr<trunk::Backend> MakeHostArrayBackend(std::unique_ptr<trunk::Backend> inner) {
  return std::make_unique<HostArrayBackend>(std::move(inner));
}

}  // namespace banyan::test
