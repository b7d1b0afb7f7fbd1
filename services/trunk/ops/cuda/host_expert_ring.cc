#include "services/trunk/ops/cuda/host_expert_ring.h"

#include <algorithm>
#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/plan/op_scratch.h"
#include "services/trunk/ops/cuda/cuda_status.h"

namespace banyan::trunk::cuda {

static_assert(kMaxHostExperts == kCudaHostExperts);

absl::Status HostExpertRing::Open(const HostExpertShape& shape, DeviceMemory* memory) {
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "cudaStreamCreate"));
  bytes_ = CudaHostRingBytes(shape);
  ASSIGN_OR_RETURN(memory_, memory->Allocate(bytes_));
  const auto make = [](cudaEvent_t* event) {
    return CudaStatus(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
  };
  RETURN_IF_ERROR(make(&announced_));
  for (Place& place : places_) {
    RETURN_IF_ERROR(make(&place.filled));
    RETURN_IF_ERROR(make(&place.emptied));
  }
  return absl::OkStatus();
}

HostExpertRing::~HostExpertRing() {
  for (const Place& place : places_) {
    if (place.filled != nullptr) cudaEventDestroy(place.filled);
    if (place.emptied != nullptr) cudaEventDestroy(place.emptied);
  }
  if (announced_ != nullptr) cudaEventDestroy(announced_);
  if (copies_ != nullptr) cudaStreamDestroy(copies_);
}

void HostExpertRing::Wait() {
  if (copies_ != nullptr) cudaStreamSynchronize(copies_);
}

void HostExpertRing::Abandon() {
  for (Place& place : places_) place.filled = place.emptied = nullptr;
  announced_ = nullptr;
  copies_ = nullptr;
}

absl::StatusOr<double> HostExpertRing::MeasureRate(std::span<const std::byte> memory) {
  constexpr int kCopies = 3;
  constexpr size_t kMost = size_t{32} << 20;  // of one: 0.6 ms of a fast link
  const size_t bytes = std::min({bytes_, memory.size(), kMost});
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < kCopies; ++i) {
    const absl::Time begin = absl::Now();
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(memory_, memory.data(), bytes, cudaMemcpyHostToDevice, copies_),
                   "copy from mapped memory"));
    RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(copies_), "copy from mapped memory"));
    best = std::min(best, absl::Now() - begin);
  }
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(best);
}

// Places for experts of another size lie elsewhere: none is filled before all are empty.
cudaError_t HostExpertRing::Cut(size_t expert_bytes) {
  if (expert_bytes == expert_bytes_) return cudaSuccess;
  for (const Place& place : places_) {
    const cudaError_t error = cudaStreamWaitEvent(copies_, place.emptied);
    if (error != cudaSuccess) return error;
  }
  expert_bytes_ = expert_bytes;
  place_experts_ =
      std::min<size_t>(kMaxHostExperts, bytes_ / (kCudaLeastHostPlaces * expert_bytes));
  CHECK(place_experts_ > 0);
  num_places_ =
      static_cast<int>(std::min<size_t>(kMaxPlaces, bytes_ / (place_experts_ * expert_bytes)));
  turn_ = ahead_ = 0;
  return cudaSuccess;
}

// Experts that lie one behind the other come in one copy.
cudaError_t HostExpertRing::FillNext(std::span<const std::byte* const> weights) {
  Place& place = places_[turn_];
  if (cudaError_t error = cudaStreamWaitEvent(copies_, place.emptied); error != cudaSuccess) {
    return error;
  }
  for (size_t first = 0; first < weights.size();) {
    size_t end = first + 1;
    while (end < weights.size() && weights[end] == weights[end - 1] + expert_bytes_) ++end;
    const cudaError_t error =
        cudaMemcpyAsync(MemoryOf(turn_) + first * expert_bytes_, weights[first],
                        (end - first) * expert_bytes_, cudaMemcpyHostToDevice, copies_);
    if (error != cudaSuccess) return error;
    first = end;
  }
  std::copy(weights.begin(), weights.end(), place.experts);
  place.num_experts = weights.size();
  turn_ = PlaceOf(turn_ + 1);
  return cudaEventRecord(place.filled, copies_);
}

cudaError_t HostExpertRing::Take(std::span<const HostExpert> experts, size_t expert_bytes,
                                 Batch* batch) {
  CHECK(!experts.empty());
  if (cudaError_t error = Cut(expert_bytes); error != cudaSuccess) return error;
  const auto holds = [&](const Place& place) {
    const auto* const end = place.experts + place.num_experts;
    return std::find(place.experts, end, experts[0].weights) != end;
  };
  // What lies before the first of them is asked for no more.
  while (ahead_ > 0 && !holds(places_[PlaceOf(turn_ - ahead_)])) --ahead_;
  *batch = {.place = PlaceOf(turn_ - ahead_), .num_experts = 0, .experts = {}};
  if (ahead_ == 0) {
    const std::byte* weights[kMaxHostExperts];
    const size_t count = std::min(experts.size(), place_experts_);
    for (size_t i = 0; i < count; ++i) weights[i] = experts[i].weights;
    if (cudaError_t error = FillNext({weights, count}); error != cudaSuccess) return error;
  }
  const Place& place = places_[batch->place];
  for (size_t at = 0; at < place.num_experts && batch->num_experts < experts.size(); ++at) {
    if (place.experts[at] != experts[batch->num_experts].weights) continue;
    batch->experts[batch->num_experts++] = MemoryOf(batch->place) + at * expert_bytes_;
  }
  return cudaStreamWaitEvent(reader_, place.filled);
}

cudaError_t HostExpertRing::Empty(const Batch& batch) {
  return cudaEventRecord(places_[batch.place].emptied, reader_);
}

cudaError_t HostExpertRing::ReadAhead(std::span<const std::byte* const> weights,
                                      size_t expert_bytes) {
  ahead_ = 0;
  cudaError_t error = Cut(expert_bytes);
  if (error == cudaSuccess) error = cudaEventRecord(announced_, reader_);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(copies_, announced_);
  if (error != cudaSuccess) return error;
  while (!weights.empty() && ahead_ < num_places_) {
    const size_t count = std::min(weights.size(), place_experts_);
    if (error = FillNext(weights.first(count)); error != cudaSuccess) return error;
    ++ahead_;
    weights = weights.subspan(count);
  }
  return cudaSuccess;
}

}  // namespace banyan::trunk::cuda
