// The bytes of ForwardRequest and ForwardResponse, written and read by hand without touching the
// payload. A frame is exactly what generated code makes of the message with every field set,
// less the trace where nothing is to be told (proto/expert/v1/expert.proto), so any gRPC client can
// speak to an expert. Byte by byte: docs/formats/expert_call.md.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace banyan {

inline constexpr uint32_t kForwardProtocolVersion = 1;  // DescribeResponse.protocol_version
// Initial metadata by which a host tells that it has taken a stream, before the first call. A host
// that refuses one sends only the final status.
inline constexpr char kForwardMetadataKey[] = "banyan-forward";

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

// kInvalidArgument when a request's flags have bits without a meaning.
absl::Status CheckForwardFlags(uint32_t flags);

// Bytes of an activation, and of a partial sum, as flags say.
constexpr size_t ActivationBytes(uint32_t flags) { return (flags & kActivationsF32) != 0 ? 4 : 2; }
constexpr size_t ReplyBytes(uint32_t flags) { return (flags & kReplyF32) != 0 ? 4 : 2; }

// Frames of one to three slices. Ids and weights (60 bytes a row at top-10) are copied behind the
// header; the large payload is the caller's slice, referenced. A reference-counted slice
// (payload_buffer.h) may be released at once; memory under a static slice must stay unchanged until
// gRPC has let go of the frame, which is later than the end of the write.
//   expert_ids [num_rows, top_k], weights [num_rows, top_k], activations [num_rows, hidden] as
//   flags say; trace: the lines of trace_context.h, copied; "" leaves the field out
grpc::ByteBuffer MakeForwardRequest(const ForwardRequestHeader& header,
                                    std::span<const uint16_t> expert_ids,
                                    std::span<const float> weights, grpc::Slice activations,
                                    std::string_view trace = {});
grpc::ByteBuffer MakeForwardResponse(const ForwardResponseHeader& header, grpc::Slice partial_sums);

// Fields found in a frame. Payload spans point into the frame's own slices when they lie in one
// slice, else into memory of the parser; any alignment. Valid until the parser's next Parse or its
// end, also after the frame has gone.
struct ForwardRequestView {
  ForwardRequestHeader header;
  std::span<const std::byte> expert_ids;
  std::span<const std::byte> weights;
  std::span<const std::byte> activations;
  std::string_view trace;  // ParseTrace accepts it; mostly empty
};
struct ForwardResponseView {
  ForwardResponseHeader header;
  std::span<const std::byte> partial_sums;
};

// The exact frame is read by a fast path; any other valid encoding of the message by generated
// code. Checks everything that can be checked without knowing the model: malformed bytes, counts of
// zero, unknown flags, payload sizes against counts (hidden_size is given), the trace.
// kInvalidArgument says what was expected and found. Thread-compatible; owns the slices of the
// frame it parsed last.
class ForwardFrameParser {
 public:
  explicit ForwardFrameParser(int32_t hidden_size);
  ~ForwardFrameParser();
  ForwardFrameParser(ForwardFrameParser&&) noexcept;
  ForwardFrameParser& operator=(ForwardFrameParser&&) noexcept;

  absl::StatusOr<ForwardRequestView> ParseRequest(const grpc::ByteBuffer& frame);
  absl::StatusOr<ForwardResponseView> ParseResponse(const grpc::ByteBuffer& frame);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace banyan
