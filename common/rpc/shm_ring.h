// Expert calls through memory that trunk and host share, where both run on one machine: rows,
// answers and two counters instead of frames on a socket. The caller makes the memory and offers
// it in the metadata of its Forward stream; a host that can open it serves calls there from then
// on. The stream stays: it tells each side when the other is gone, and it carries the calls where
// memory cannot be shared. Layout and rules: docs/formats/expert_call.md.
//
// The host trusts nothing that it reads: what it checks it copies first, the memory cannot shrink
// under it, and what it opens must be what the offer says.
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
#include "common/rpc/expert_frame.h"

namespace banyan {

// Metadata of a Forward call: the caller's offer, and the host's word that it has opened it.
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

  // Where the memory is and how to know it. Worth nothing once the file is closed.
  const std::string& offer() const { return offer_; }
  // The host has opened it.
  void CloseFile();

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
  ShmRingCaller(std::unique_ptr<ShmRingMemory> memory, int fd, std::string offer);

  const std::unique_ptr<ShmRingMemory> memory_;
  int fd_;  // -1: closed
  const std::string offer_;
  uint32_t posted_ = 0;
  uint32_t taken_ = 0;
  ForwardRequestHeader requests_[kShmRingSlots];
};

// The host's side. Owned by one thread but for Close.
class ShmRingHost {
 public:
  // kInvalidArgument: not an offer. Others: why the memory cannot be had, which is no fault where
  // the processes are on different machines, or in containers or under users that are kept apart.
  static absl::StatusOr<std::unique_ptr<ShmRingHost>> Open(std::string_view offer,
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
