// Expert calls through memory that trunk and host share, where both run on one machine: rows,
// answers and two counters instead of frames on a socket. The caller makes the memory, sends it to
// the host's inbox (memory_inbox.h) and names it in the metadata of its Forward stream; a host that
// finds it serves calls there from then on. The stream stays: it tells each side when the other is
// gone, and it carries the calls where memory cannot be shared. Layout and rules:
// docs/formats/expert_call.md.
//
// The host trusts nothing that it reads: what it checks it copies first, the memory cannot shrink
// under it, and what it maps must be what the offer says.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/file_descriptor.h"
#include "common/rpc/expert_frame.h"
#include "common/rpc/memory_inbox.h"

namespace banyan {

// Metadata of a Forward call: the caller's offer, and the host's word that it has taken it.
inline constexpr char kShmRingMetadataKey[] = "banyan-shm-ring";

inline constexpr uint32_t kShmRingSlots = 2;  // calls under way at once

// What one call may hold, as the host describes itself.
struct ShmRingGeometry {
  uint32_t max_rows = 0;
  uint32_t max_top_k = 0;
  uint32_t hidden_size = 0;
  bool operator==(const ShmRingGeometry&) const = default;
};

// The memory itself, mapped; pages are taken from the system when they are first touched.
class ShmRingMemory;

// The trunk's side. Owned by one thread.
class ShmRingCaller {
 public:
  // The system's error where it has no such memory.
  static absl::StatusOr<std::unique_ptr<ShmRingCaller>> Create(const ShmRingGeometry& geometry);
  ~ShmRingCaller();
  ShmRingCaller(const ShmRingCaller&) = delete;
  ShmRingCaller& operator=(const ShmRingCaller&) = delete;

  // Sends the memory to a host, once. Errors as of SendMemory.
  absl::Status HandOver(const std::string& inbox);
  // The name that it was sent under.
  const std::string& offer() const { return offer_; }

  bool CanPost() const { return posted_ - taken_ < kShmRingSlots; }
  // Where the activations of the next call go, [num_rows, hidden_size]; CanPost() must be true.
  std::byte* Rows();
  // The call whose activations lie there. Counts within the geometry, trace as in a frame.
  void Post(const ForwardRequestHeader& header, std::span<const uint16_t> expert_ids,
            std::span<const float> weights, std::string_view trace);

  // To the oldest call whose answer was not taken.
  bool HasAnswer() const;
  // The header as the host wrote it; sums for the rows and the type that were asked for, which stay
  // until the next Post but one.
  ForwardResponseView TakeAnswer();
  // Sleeps until HasAnswer, but not longer.
  void Wait(std::chrono::nanoseconds at_most);

 private:
  ShmRingCaller(std::unique_ptr<ShmRingMemory> memory, FileDescriptor file);

  const std::unique_ptr<ShmRingMemory> memory_;
  FileDescriptor file_;  // until it is handed over
  const std::string offer_;
  uint32_t posted_ = 0;
  uint32_t taken_ = 0;
  ForwardRequestHeader requests_[kShmRingSlots];
};

// The host's side. Owned by one thread but for Close.
class ShmRingHost {
 public:
  // Takes what `offer` names out of the inbox. kInvalidArgument: not an offer. kNotFound: nothing
  // came under that name. kFailedPrecondition: what came is not such a memory.
  static absl::StatusOr<std::unique_ptr<ShmRingHost>> Open(MemoryInbox& inbox,
                                                           std::string_view offer,
                                                           const ShmRingGeometry& geometry);
  ~ShmRingHost();
  ShmRingHost(const ShmRingHost&) = delete;
  ShmRingHost& operator=(const ShmRingHost&) = delete;

  bool HasRequest() const;
  // Sleeps until HasRequest or closed.
  void Sleep();
  // No request is taken any more. Any thread.
  void Close();
  bool closed() const { return closed_.load(std::memory_order_acquire); }

  // HasRequest() must be true. Ids, weights and trace are copies; activations lie where the caller
  // put them, and may change if it is up to no good. Valid until the next one is taken.
  // kInvalidArgument as in ForwardFrameParser.
  absl::StatusOr<ForwardRequestView> TakeRequest();
  // Where the sums of the request taken last go.
  std::byte* Sums();
  void Answer(const ForwardResponseHeader& header);

 private:
  explicit ShmRingHost(std::unique_ptr<ShmRingMemory> memory);

  const std::unique_ptr<ShmRingMemory> memory_;
  uint32_t taken_ = 0;
  std::atomic<bool> closed_{false};
  std::vector<std::byte> copy_;
};

}  // namespace banyan
