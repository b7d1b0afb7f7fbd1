// The bytes of ForwardRequest and ForwardResponse, written and read by hand without touching the
// payload. A frame is exactly what generated code makes of the message with every field set
// (proto/expert/v1/expert.proto), so any gRPC client can speak to an expert.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace banyan {

inline constexpr uint16_t kNoExpert = 0xffff;  // this place of the row belongs to another shard

enum ForwardFlags : uint32_t {
  kActivationsF32 = 1u << 0,  // else bf16
  kReplyF32 = 1u << 1,        // else bf16
};

struct ForwardRequestHeader {
  uint64_t sequence = 0;
  uint64_t step = 0;
  uint32_t layer = 0;
  uint32_t num_rows = 0;
  uint32_t top_k = 0;
  uint32_t flags = 0;
  uint32_t attempt = 0;
};

struct ForwardResponseHeader {
  uint64_t sequence = 0;
  uint32_t num_rows = 0;
  uint32_t flags = 0;
  uint32_t queue_ns = 0;
  uint32_t compute_ns = 0;
};

// A frame whose payload slices refer to the caller's memory: it must stay unchanged until the write
// has completed and the buffer is destroyed.
//   expert_ids [num_rows, top_k], weights [num_rows, top_k], activations [num_rows, hidden] as
//   flags say
grpc::ByteBuffer MakeForwardRequest(const ForwardRequestHeader& header,
                                    std::span<const uint16_t> expert_ids,
                                    std::span<const float> weights,
                                    std::span<const std::byte> activations);
grpc::ByteBuffer MakeForwardResponse(const ForwardResponseHeader& header,
                                     std::span<const std::byte> partial_sums);

// Fields found in a frame. Payload spans point into the frame's own slices when they lie in one
// slice, else into `storage` of the parser; any alignment. Valid until the next Parse or the
// frame's end.
struct ForwardRequestView {
  ForwardRequestHeader header;
  std::span<const std::byte> expert_ids;
  std::span<const std::byte> weights;
  std::span<const std::byte> activations;
};
struct ForwardResponseView {
  ForwardResponseHeader header;
  std::span<const std::byte> partial_sums;
};

// The exact frame is read by a fast path; any other valid encoding of the message by a general one.
// Checks everything that can be checked without knowing the model: malformed bytes, missing
// payloads, counts against payload sizes (hidden_size is given). kInvalidArgument says what was
// expected and found. Thread-compatible; owns the slices of the frame it parsed last.
class ForwardFrameParser {
 public:
  explicit ForwardFrameParser(int32_t hidden_size);
  ~ForwardFrameParser();
  absl::StatusOr<ForwardRequestView> ParseRequest(const grpc::ByteBuffer& frame);
  absl::StatusOr<ForwardResponseView> ParseResponse(const grpc::ByteBuffer& frame);

 private:
  class Impl;
  Impl* impl_;
};

}  // namespace banyan
