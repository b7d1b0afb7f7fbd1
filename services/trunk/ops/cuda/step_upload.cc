#include "services/trunk/ops/cuda/step_upload.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/plan/op_scratch.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {

static_assert(kPageTokens == kOpsPageTokens && kChunkTokens == kOpsChunkTokens);

namespace {

constexpr size_t kAlignment = 16;

size_t Rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Places arrays one after the other in a buffer.
class Packer {
 public:
  Packer(std::byte* host, std::byte* device, size_t size)
      : host_(host), device_(device), size_(size) {}

  template <typename T>
  std::span<T> Add(size_t count, const T** device) {
    const size_t bytes = Rounded(count * sizeof(T));
    CHECK(bytes <= size_ - used_);
    *device = reinterpret_cast<const T*>(device_ + used_);
    const std::span<T> out(reinterpret_cast<T*>(host_ + used_), count);
    used_ += bytes;
    return out;
  }
  template <typename T>
  void Add(std::span<const T> values, const T** device) {
    const std::span<T> out = Add<T>(values.size(), device);
    if (!values.empty()) std::memcpy(out.data(), values.data(), values.size_bytes());
  }
  size_t used() const { return used_; }

 private:
  std::byte* host_;
  std::byte* device_;
  size_t size_;
  size_t used_ = 0;
};

}  // namespace

StepUpload::~StepUpload() {
  for (cudaEvent_t event : copied_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

absl::Status StepUpload::Reserve(const OpLimits& limits, DeviceMemory* memory) {
  static_assert(sizeof(Segment) == 20 && sizeof(AttentionTile) == 20 &&
                sizeof(HandoverCounts) == kCudaHandoverCountBytes &&
                kVectorsPerTile == kCudaVectorsPerTile);  // as op_scratch.cc counts them
  bytes_ = CudaStepTableBytes(limits);
  if (limits.attention.num_heads > 0) {
    group_ = limits.attention.num_heads / limits.attention.num_kv_heads;
  }
  tiles_.reserve(CudaMaxAttentionTiles(limits));
  chunks_at_once_ = CudaDeltaChunks(limits);
  const auto chunks = static_cast<size_t>(CudaMaxChunks(limits));
  first_chunk_.reserve(static_cast<size_t>(limits.max_segments));
  chunk_owner_.reserve(chunks);
  if (chunks_at_once_ > 0) chunk_ranges_.reserve(chunks / static_cast<size_t>(chunks_at_once_) + 1);
  ASSIGN_OR_RETURN(device_, memory->Allocate(bytes_));
  for (int i = 0; i < kBuffers; ++i) {
    ASSIGN_OR_RETURN(host_[i], memory->AllocatePinned(bytes_));
    RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&copied_[i], cudaEventDisableTiming),
                               "cudaEventCreate"));
  }
  return absl::OkStatus();
}

void StepUpload::CutTiles(const StepPlan& plan) {
  tiles_.clear();
  num_partials_ = 0;
  if (group_ == 0) return;
  int32_t partials = 0;
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const PlanSegment& segment = plan.segments[i];
    const int32_t vectors = segment.num_rows * group_;
    for (int32_t first = 0; first < vectors; first += kVectorsPerTile) {
      const int32_t count = std::min(kVectorsPerTile, vectors - first);
      const int32_t last_position = segment.first_position + (first + count - 1) / group_;
      const int32_t pages = last_position / kPageTokens + 1;
      tiles_.push_back({static_cast<int32_t>(i), first, count, pages, partials});
      partials += pages;
    }
  }
  num_partials_ = partials;
}

void StepUpload::CutChunks(const StepPlan& plan) {
  first_chunk_.clear();
  chunk_owner_.clear();
  chunk_ranges_.clear();
  for (const PlanSegment& segment : plan.segments) {
    if (!segment.chunked) continue;
    const auto owner = static_cast<int32_t>(first_chunk_.size());
    first_chunk_.push_back(static_cast<int32_t>(chunk_owner_.size()));
    const int32_t chunks = (segment.num_rows + kChunkTokens - 1) / kChunkTokens;
    chunk_owner_.insert(chunk_owner_.end(), static_cast<size_t>(chunks), owner);
  }
  if (chunks_at_once_ == 0) return;
  const auto num_chunks = static_cast<int32_t>(chunk_owner_.size());
  for (int32_t first = 0; first < num_chunks; first += chunks_at_once_) {
    const int32_t count = std::min(chunks_at_once_, num_chunks - first);
    const int32_t owner = chunk_owner_[static_cast<size_t>(first)];
    const int32_t last_owner = chunk_owner_[static_cast<size_t>(first + count - 1)];
    chunk_ranges_.push_back({first, count, owner, last_owner - owner + 1});
  }
}

cudaError_t StepUpload::Begin(const StepPlan& plan, const HandoverCounts& handovers,
                              cudaStream_t stream) {
  CHECK(bytes_ > 0);
  turn_ = (turn_ + 1) % kBuffers;
  if (cudaError_t error = cudaEventSynchronize(copied_[turn_]); error != cudaSuccess) return error;
  CutTiles(plan);
  CutChunks(plan);
  Packer packer(host_[turn_], device_, bytes_);
  tables_ = StepTables();
  tables_.num_rows = plan.num_rows;
  tables_.num_segments = static_cast<int32_t>(plan.segments.size());
  tables_.num_tiles = static_cast<int32_t>(tiles_.size());
  tables_.num_chunks = static_cast<int32_t>(chunk_owner_.size());
  packer.Add(std::span<const HandoverCounts>(&handovers, 1), &tables_.handovers);
  const std::span<Segment> segments = packer.Add(plan.segments.size(), &tables_.segments);
  const std::span<int32_t> recurrent = packer.Add(plan.segments.size(), &tables_.recurrent);
  const std::span<int32_t> chunked = packer.Add(plan.segments.size(), &tables_.chunked);
  const std::span<int32_t> row_segment =
      packer.Add(static_cast<size_t>(plan.num_rows), &tables_.row_segment);
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const PlanSegment& s = plan.segments[i];
    segments[i] = {s.first_row, s.num_rows, s.first_position, s.slot, s.first_page};
    int32_t& count = s.chunked ? tables_.num_chunked : tables_.num_recurrent;
    (s.chunked ? chunked : recurrent)[static_cast<size_t>(count++)] = static_cast<int32_t>(i);
    std::fill_n(row_segment.begin() + s.first_row, s.num_rows, static_cast<int32_t>(i));
  }
  packer.Add(std::span<const int32_t>(first_chunk_), &tables_.first_chunk);
  packer.Add(std::span<const int32_t>(chunk_owner_), &tables_.chunk_owner);
  packer.Add(plan.token_ids, &tables_.token_ids);
  packer.Add(plan.positions, &tables_.positions);
  packer.Add(plan.rope_cos, &tables_.rope_cos);
  packer.Add(plan.rope_sin, &tables_.rope_sin);
  packer.Add(std::span<const AttentionTile>(tiles_), &tables_.tiles);
  packer.Add(plan.page_ids, &tables_.page_ids);  // last: their number changes from step to step
  if (cudaError_t error =
          cudaMemcpyAsync(device_, host_[turn_], packer.used(), cudaMemcpyHostToDevice, stream);
      error != cudaSuccess) {
    return error;
  }
  return cudaEventRecord(copied_[turn_], stream);
}

}  // namespace banyan::trunk::cuda
