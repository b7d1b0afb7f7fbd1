// Request and response parser of the Forward frames. First byte: hidden size; second: where the
// frame is cut into slices. What the parser accepts must mean the same to generated code.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/base/trace_context.h"
#include "common/rpc/expert_frame.h"
#include "proto/expert/v1/expert.pb.h"

namespace banyan {
namespace {

grpc::ByteBuffer Cut(const uint8_t* data, size_t size, uint32_t state) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < size;) {
    state = state * 1664525u + 1013904223u;
    const size_t most = (state >> 8) % 4 == 0 ? 3 : size;
    const size_t part = std::min<size_t>((state >> 12) % (most + 1), size - at);
    slices.emplace_back(data + at, part);
    at += part;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

bool Same(std::span<const std::byte> found, const std::string& expected) {
  return std::string_view(reinterpret_cast<const char*>(found.data()), found.size()) == expected;
}

void CheckRequest(ForwardFrameParser& parser, const grpc::ByteBuffer& frame, const uint8_t* data,
                  size_t size) {
  const auto view = parser.ParseRequest(frame);
  if (!view.ok()) {
    CHECK(view.status().code() == absl::StatusCode::kInvalidArgument);
    CHECK(!view.status().message().empty());
    return;
  }
  expert::v1::ForwardRequest message;
  CHECK(message.ParseFromArray(data, static_cast<int>(size)));
  const ForwardRequestHeader& header = view->header;
  CHECK(message.sequence() == header.sequence && message.step() == header.step);
  CHECK(message.layer() == header.layer && message.num_rows() == header.num_rows);
  CHECK(message.top_k() == header.top_k && message.flags() == header.flags);
  CHECK(message.attempt() == header.attempt);
  CHECK(Same(view->expert_ids, message.expert_ids()));
  CHECK(Same(view->weights, message.weights()));
  CHECK(Same(view->activations, message.activations()));
  CHECK(view->trace == message.trace());
  CHECK(ParseTrace(view->trace).ok());
  CHECK(view->expert_ids.size() == size_t{2} * header.num_rows * header.top_k);
}

void CheckResponse(ForwardFrameParser& parser, const grpc::ByteBuffer& frame, const uint8_t* data,
                   size_t size) {
  const auto view = parser.ParseResponse(frame);
  if (!view.ok()) {
    CHECK(view.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  expert::v1::ForwardResponse message;
  CHECK(message.ParseFromArray(data, static_cast<int>(size)));
  const ForwardResponseHeader& header = view->header;
  CHECK(message.sequence() == header.sequence && message.num_rows() == header.num_rows);
  CHECK(message.flags() == header.flags && message.queue_ns() == header.queue_ns);
  CHECK(message.compute_ns() == header.compute_ns);
  CHECK(Same(view->partial_sums, message.partial_sums()));
}

}  // namespace
}  // namespace banyan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  banyan::ForwardFrameParser parser(1 + data[0] % 16);
  const grpc::ByteBuffer frame = banyan::Cut(data + 2, size - 2, data[1]);
  banyan::CheckRequest(parser, frame, data + 2, size - 2);
  banyan::CheckResponse(parser, frame, data + 2, size - 2);
  return 0;
}
