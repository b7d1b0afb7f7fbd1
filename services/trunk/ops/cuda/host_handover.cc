#include "services/trunk/ops/cuda/host_handover.h"

#include <atomic>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/plan/op_scratch.h"

namespace banyan::trunk::cuda {

static_assert(kMaxSharedCopies <= kMaxCopies);
static_assert(sizeof(HandoverState) == kCudaHandoverBytes);

namespace {

// Looks at a flag before the driver is asked whether the device is well.
constexpr int kLooksPerQuery = 1 << 16;

}  // namespace

absl::StatusOr<std::unique_ptr<HostHandover>> HostHandover::Create(DeviceMemory* memory,
                                                                   cudaStream_t stream) {
  std::unique_ptr<HostHandover> handover(new HostHandover(memory, stream));
  ASSIGN_OR_RETURN(std::byte * flags, memory->AllocatePinned(sizeof(HandoverFlags)));
  handover->flags_ = reinterpret_cast<HandoverFlags*>(flags);
  return handover;
}

absl::StatusOr<SharedBuffer> HostHandover::NewBuffer(size_t bytes) {
  if (state_ == nullptr) {
    ASSIGN_OR_RETURN(std::byte * state, memory_->Allocate(kCudaHandoverBytes));
    state_ = reinterpret_cast<HandoverState*>(state);
  }
  SharedBuffer buffer;
  ASSIGN_OR_RETURN(buffer.device, memory_->Allocate(bytes));
  ASSIGN_OR_RETURN(buffer.host, memory_->AllocatePinned(bytes));
  return buffer;
}

void HostHandover::QueueToHost(std::span<const SharedCopy> copies, Outcome outcome) const {
  Queue(copies, nullptr, outcome);
}

void HostHandover::QueueToDevice(std::span<const SharedCopy> copies, const ReleaseTurn& turn,
                                 Outcome outcome) const {
  Queue(copies, &turn, outcome);
}

// Large copies are the copy engine's, small ones go with the flag: after all others to the host,
// before all others to the device.
void HostHandover::Queue(std::span<const SharedCopy> copies, const ReleaseTurn* turn,
                         Outcome outcome) const {
  const bool to_host = turn == nullptr;
  const size_t mapped_bytes = to_host ? kMappedWriteBytes : kMappedReadBytes;
  HandoverLaunch launch;
  launch.state = state_;
  launch.flags = flags_;
  if (!to_host) launch.turn = *turn;
  for (const SharedCopy& copy : copies) {
    if (copy.bytes > mapped_bytes) continue;
    launch.copies[launch.num_copies++] = {to_host ? copy.buffer.device : copy.buffer.host,
                                          to_host ? copy.buffer.host : copy.buffer.device,
                                          static_cast<int64_t>(copy.bytes)};
  }
  if (!to_host) outcome(TakeFromHost(launch, stream_), launch.num_copies, 0);
  for (const SharedCopy& copy : copies) {
    if (copy.bytes <= mapped_bytes) continue;
    outcome(cudaMemcpyAsync(to_host ? copy.buffer.host : copy.buffer.device,
                            to_host ? copy.buffer.device : copy.buffer.host, copy.bytes,
                            to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, stream_),
            1, static_cast<int32_t>(copy.bytes));
  }
  if (to_host) outcome(HandToHost(launch, stream_), launch.num_copies, 0);
}

absl::Status HostHandover::Await(absl::FunctionRef<absl::StatusOr<bool>()> stream_done) {
  if (awaited_ == queued_.to_host) return absl::OkStatus();
  const uint32_t wanted = ++awaited_;
  for (int looks = 0; static_cast<int32_t>(flags_->to_host - wanted) < 0; ++looks) {
    if (looks < kLooksPerQuery) continue;
    looks = 0;
    ASSIGN_OR_RETURN(const bool done, stream_done());
    CHECK(!done || static_cast<int32_t>(flags_->to_host - wanted) >= 0);
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  return absl::OkStatus();
}

void HostHandover::Release() {
  std::atomic_thread_fence(std::memory_order_release);
  flags_->to_device = ++released_;
}

}  // namespace banyan::trunk::cuda
