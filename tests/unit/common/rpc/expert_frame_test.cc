#include "common/rpc/expert_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/base/trace_context.h"
#include "common/rpc/channel_settings.h"
#include "proto/expert/v1/expert.pb.h"

namespace banyan {
namespace {

using testing::HasSubstr;

constexpr char kTraceparent[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Request {
  ForwardRequestHeader header;
  std::vector<uint16_t> ids;
  std::vector<float> weights;
  std::string activations;
  std::string trace = {};
};

std::string RandomBytes(std::mt19937& rng, size_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(rng());
  return bytes;
}

Request RandomRequest(std::mt19937& rng, uint32_t rows, uint32_t top_k, int32_t hidden) {
  Request request;
  request.header = {.sequence = uint64_t{rng()} << 32 | rng(),
                    .step = rng(),
                    .layer = rng() % 2 == 0 ? 0 : static_cast<uint32_t>(rng()),
                    .num_rows = rows,
                    .top_k = top_k,
                    .flags = static_cast<uint32_t>(rng() % 4),
                    .attempt = static_cast<uint32_t>(rng() % 2)};
  for (uint32_t i = 0; i < rows * top_k; ++i) {
    request.ids.push_back(static_cast<uint16_t>(rng()));
    request.weights.push_back(static_cast<float>(rng()) / 1e9f);
  }
  const size_t item = (request.header.flags & kActivationsF32) != 0 ? 4 : 2;
  request.activations = RandomBytes(rng, size_t{rows} * hidden * item);
  // Every second one tells of requests that join; up to the bound, so lengths of one and two bytes.
  if (rng() % 2 == 0) return request;
  for (uint32_t left = 1 + static_cast<uint32_t>(rng()) % 30; left > 0; --left) {
    const std::string id(1 + rng() % kMaxRequestIdBytes, static_cast<char>('!' + rng() % 94));
    AppendTrace({id, rng() % 2 == 0 ? "" : kTraceparent}, &request.trace);
  }
  return request;
}

std::string Bytes(const grpc::ByteBuffer& frame) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(frame.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

std::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <typename T>
std::string_view RawBytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

grpc::ByteBuffer Frame(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// Cut at random places into slices of odd sizes and alignments, some of them empty.
grpc::ByteBuffer CutFrame(std::mt19937& rng, const std::string& bytes) {
  std::vector<grpc::Slice> slices;
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t most = rng() % 3 == 0 ? 4 : bytes.size();
    const size_t size = std::min<size_t>(rng() % (most + 1), bytes.size() - at);
    slices.emplace_back(bytes.data() + at, size);
    at += size;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

expert::v1::ForwardRequest Generated(const Request& request) {
  expert::v1::ForwardRequest message;
  message.set_sequence(request.header.sequence);
  message.set_step(request.header.step);
  message.set_layer(request.header.layer);
  message.set_num_rows(request.header.num_rows);
  message.set_top_k(request.header.top_k);
  message.set_flags(request.header.flags);
  message.set_attempt(request.header.attempt);
  message.set_expert_ids(std::string(RawBytes(request.ids)));
  message.set_weights(std::string(RawBytes(request.weights)));
  message.set_activations(request.activations);
  if (!request.trace.empty()) message.set_trace(request.trace);
  return message;
}

std::string HandMade(const Request& request) {
  return Bytes(MakeForwardRequest(request.header, request.ids, request.weights,
                                  grpc::Slice(request.activations), request.trace));
}

void ExpectEqual(const ForwardRequestView& view, const Request& request) {
  EXPECT_EQ(view.header.sequence, request.header.sequence);
  EXPECT_EQ(view.header.step, request.header.step);
  EXPECT_EQ(view.header.layer, request.header.layer);
  EXPECT_EQ(view.header.num_rows, request.header.num_rows);
  EXPECT_EQ(view.header.top_k, request.header.top_k);
  EXPECT_EQ(view.header.flags, request.header.flags);
  EXPECT_EQ(view.header.attempt, request.header.attempt);
  EXPECT_EQ(Text(view.expert_ids), RawBytes(request.ids));
  EXPECT_EQ(Text(view.weights), RawBytes(request.weights));
  EXPECT_EQ(Text(view.activations), request.activations);
  EXPECT_EQ(view.trace, request.trace);
}

struct Shape {
  uint32_t rows, top_k;
  int32_t hidden;
};
constexpr Shape kShapes[] = {{1, 1, 1},    {1, 10, 2048}, {2, 3, 7},     {3, 4, 64},
                             {21, 10, 33}, {64, 10, 128}, {133, 8, 2048}};

TEST(ForwardRequestTest, IsByteForByteWhatGeneratedCodeWrites) {
  std::mt19937 rng(1);
  for (const Shape& shape : kShapes) {
    for (int i = 0; i < 8; ++i) {
      const Request request = RandomRequest(rng, shape.rows, shape.top_k, shape.hidden);
      EXPECT_EQ(HandMade(request), Generated(request).SerializeAsString());
    }
  }
}

TEST(ForwardRequestTest, FieldsOfZeroArePresent) {
  const Request request{.header = {}, .ids = {}, .weights = {}, .activations = ""};
  const std::string bytes = HandMade(request);
  EXPECT_EQ(bytes, Generated(request).SerializeAsString());
  expert::v1::ForwardRequest message;
  ASSERT_TRUE(message.ParseFromString(bytes));
  EXPECT_TRUE(message.has_sequence() && message.has_attempt() && message.has_activations());
}

TEST(ForwardRequestTest, ReadsWhatGeneratedCodeWritesHoweverItIsCut) {
  std::mt19937 rng(2);
  for (const Shape& shape : kShapes) {
    ForwardFrameParser parser(shape.hidden);
    for (int i = 0; i < 20; ++i) {
      const Request request = RandomRequest(rng, shape.rows, shape.top_k, shape.hidden);
      const auto view = parser.ParseRequest(CutFrame(rng, Generated(request).SerializeAsString()));
      ASSERT_TRUE(view.ok()) << view.status();
      ExpectEqual(*view, request);
    }
  }
}

TEST(ForwardRequestTest, ReadsAnyValidEncoding) {
  std::mt19937 rng(3);
  ForwardFrameParser parser(6);
  for (int i = 0; i < 50; ++i) {
    const Request request = RandomRequest(rng, 3, 2, 6);
    const expert::v1::ForwardRequest whole = Generated(request);
    // Each field as a message of its own, in any order; last one wins; unknown fields are ignored.
    std::vector<std::string> parts;
    const google::protobuf::Descriptor* type = whole.GetDescriptor();
    for (int f = 0; f < type->field_count(); ++f) {
      expert::v1::ForwardRequest part = whole;
      for (int other = 0; other < type->field_count(); ++other) {
        if (other != f) part.GetReflection()->ClearField(&part, type->field(other));
      }
      parts.push_back(part.SerializeAsString());
    }
    parts.push_back("\xf8\x06\x01");  // field 111, varint 1
    std::shuffle(parts.begin(), parts.end(), rng);
    expert::v1::ForwardRequest stale;
    stale.set_num_rows(77);
    stale.set_activations("stale");
    std::string bytes = stale.SerializeAsString();
    for (const std::string& part : parts) bytes += part;
    const auto view = parser.ParseRequest(CutFrame(rng, bytes));
    ASSERT_TRUE(view.ok()) << view.status();
    ExpectEqual(*view, request);
  }
}

// What a decode step sends: these bytes must not depend on whether traces exist.
TEST(ForwardRequestTest, WithoutATraceNothingIsAdded) {
  const Request request{.header = {.sequence = 1, .step = 2, .layer = 3, .num_rows = 1, .top_k = 1},
                        .ids = {7},
                        .weights = {0.5f},
                        .activations = "\x01\x02"};
  const std::string bytes = HandMade(request);
  EXPECT_EQ(bytes, std::string("\x09\x01\0\0\0\0\0\0\0\x11\x02\0\0\0\0\0\0\0"
                               "\x1d\x03\0\0\0\x25\x01\0\0\0\x2d\x01\0\0\0\x35\0\0\0\0"
                               "\x3d\0\0\0\0\x42\x02\x07\0\x4a\x04\0\0\0\x3f\x52\x02\x01\x02",
                               57));
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(MakeForwardRequest(request.header, request.ids, request.weights,
                                 grpc::Slice(request.activations))
                  .Dump(&slices)
                  .ok());
  EXPECT_EQ(slices.size(), 2u);
}

TEST(ForwardRequestTest, RefusesATraceThatMayNotStandInALog) {
  std::mt19937 rng(9);
  Request request = RandomRequest(rng, 3, 2, 8);
  for (const std::string& trace :
       {std::string("r-1"), std::string("r 1\n"), std::string("r\x1b[2J\n"), std::string("r\xff\n"),
        std::string(kMaxTraceBytes, 'x') + "\n"}) {
    request.trace = trace;
    const std::string fast = HandMade(request);
    ASSERT_EQ(fast, Generated(request).SerializeAsString());
    for (const std::string& bytes : {fast, fast + fast}) {  // the second: by generated code
      ForwardFrameParser parser(8);
      const auto view = parser.ParseRequest(Frame(bytes));
      EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(view.status().message()), HasSubstr("ForwardRequest: trace"));
    }
  }
}

TEST(ForwardRequestTest, PayloadsAreNotCopied) {
  std::mt19937 rng(4);
  const Request request = RandomRequest(rng, 5, 2, 512);
  const grpc::Slice payload(request.activations.data(), request.activations.size(),
                            grpc::Slice::STATIC_SLICE);
  const grpc::ByteBuffer frame =
      MakeForwardRequest(request.header, request.ids, request.weights, payload, "r-1\n");
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(frame.Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 3u);
  EXPECT_EQ(static_cast<const void*>(slices[1].begin()), request.activations.data());
  ForwardFrameParser parser(512);
  const auto view = parser.ParseRequest(frame);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(static_cast<const void*>(view->activations.data()), request.activations.data());
}

TEST(ForwardRequestTest, ViewsOutliveTheFrame) {
  std::mt19937 rng(5);
  const Request request = RandomRequest(rng, 4, 2, 100);
  ForwardFrameParser parser(100);
  absl::StatusOr<ForwardRequestView> view;
  {
    const grpc::ByteBuffer frame = Frame(HandMade(request));
    view = parser.ParseRequest(frame);
  }
  ASSERT_TRUE(view.ok()) << view.status();
  ExpectEqual(*view, request);
}

std::string RequestError(const expert::v1::ForwardRequest& message, int32_t hidden) {
  ForwardFrameParser parser(hidden);
  const auto view = parser.ParseRequest(Frame(message.SerializeAsString()));
  EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(view.status().message());
}

TEST(ForwardRequestTest, RefusesCountsThatDoNotFitThePayload) {
  std::mt19937 rng(6);
  Request request = RandomRequest(rng, 3, 2, 8);
  request.header.flags = kActivationsF32;
  request.activations = RandomBytes(rng, 3 * 8 * 4);
  const expert::v1::ForwardRequest good = Generated(request);
  auto bad = good;
  bad.set_num_rows(0);
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("num_rows 0"));
  bad.clear_num_rows();
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("num_rows 0"));
  bad = good;
  bad.set_top_k(0);
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("top_k 0"));
  bad = good;
  bad.set_num_rows(4);
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("expert_ids: 12 bytes, expected 16"));
  bad = good;
  bad.clear_weights();
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("weights: 0 bytes, expected 24"));
  bad = good;
  bad.set_flags(0);
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("activations: 96 bytes, expected 48"));
  bad.set_flags(4);
  EXPECT_THAT(RequestError(bad, 8), HasSubstr("flags 0x4"));
  EXPECT_THAT(RequestError(good, 9), HasSubstr("activations: 96 bytes, expected 108 (3 rows of 9"));
  // Products that wrap around 2^32 and 2^64 to the very sizes of the payloads.
  for (uint32_t huge : {0x80000000u, 0xffffffffu, 0x40000000u}) {
    bad = good;
    bad.set_num_rows(huge);
    EXPECT_THAT(RequestError(bad, 8), HasSubstr("num_rows"));
    bad.set_top_k(huge);
    EXPECT_THAT(RequestError(bad, 8), HasSubstr("num_rows"));
  }
}

TEST(ForwardRequestTest, RefusesWhatIsNoMessage) {
  ForwardFrameParser parser(4);
  EXPECT_EQ(parser.ParseRequest(grpc::ByteBuffer()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parser.ParseRequest(Frame("")).status().message()),
              HasSubstr("num_rows 0"));
  EXPECT_THAT(std::string(parser.ParseRequest(Frame("\xff\xff\xff")).status().message()),
              HasSubstr("ForwardRequest of 3 bytes is not a protobuf message"));
  const std::string large(kMaxMessageBytes + 1, 'x');
  const grpc::Slice slice(large.data(), large.size(), grpc::Slice::STATIC_SLICE);
  EXPECT_THAT(std::string(parser.ParseRequest(grpc::ByteBuffer(&slice, 1)).status().message()),
              HasSubstr("67108865 bytes, expected at most 67108864"));
}

TEST(ForwardRequestTest, TruncatedAndFlippedFramesNeverReadOutside) {
  std::mt19937 rng(7);
  const Request request = RandomRequest(rng, 2, 3, 5);
  const std::string bytes = HandMade(request);
  ForwardFrameParser parser(5);
  Request without = request;
  without.trace.clear();
  const size_t untraced = HandMade(without).size();
  for (size_t size = 0; size < bytes.size(); ++size) {
    if (size == untraced) continue;  // the field left out: a frame of its own
    EXPECT_FALSE(parser.ParseRequest(CutFrame(rng, bytes.substr(0, size))).ok()) << size;
  }
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    const auto view = parser.ParseRequest(CutFrame(rng, flipped));
    if (!view.ok()) continue;
    // What is still accepted must mean the same to generated code.
    expert::v1::ForwardRequest message;
    ASSERT_TRUE(message.ParseFromString(flipped)) << bit;
    EXPECT_EQ(message.num_rows(), view->header.num_rows);
    EXPECT_EQ(message.sequence(), view->header.sequence);
    EXPECT_EQ(message.activations(), Text(view->activations));
    EXPECT_EQ(message.trace(), view->trace);
  }
}

struct Response {
  ForwardResponseHeader header;
  std::string sums;
};

Response RandomResponse(std::mt19937& rng, uint32_t rows, int32_t hidden) {
  Response response;
  response.header = {.sequence = uint64_t{rng()} << 32 | rng(),
                     .num_rows = rows,
                     .flags = rng() % 2 == 0 ? 0u : uint32_t{kReplyF32},
                     .queue_ns = static_cast<uint32_t>(rng()),
                     .compute_ns = static_cast<uint32_t>(rng())};
  const size_t item = response.header.flags != 0 ? 4 : 2;
  response.sums = RandomBytes(rng, size_t{rows} * hidden * item);
  return response;
}

TEST(ForwardResponseTest, BothDirectionsAgreeWithGeneratedCode) {
  std::mt19937 rng(8);
  for (const Shape& shape : kShapes) {
    ForwardFrameParser parser(shape.hidden);
    for (int i = 0; i < 20; ++i) {
      const Response response = RandomResponse(rng, shape.rows, shape.hidden);
      expert::v1::ForwardResponse message;
      message.set_sequence(response.header.sequence);
      message.set_num_rows(response.header.num_rows);
      message.set_flags(response.header.flags);
      message.set_queue_ns(response.header.queue_ns);
      message.set_compute_ns(response.header.compute_ns);
      message.set_partial_sums(response.sums);
      const std::string bytes =
          Bytes(MakeForwardResponse(response.header, grpc::Slice(response.sums)));
      ASSERT_EQ(bytes, message.SerializeAsString());
      // Payload first, then the fields: the general path.
      expert::v1::ForwardResponse fields = message;
      fields.clear_partial_sums();
      expert::v1::ForwardResponse payload;
      payload.set_partial_sums(response.sums);
      for (const std::string& encoding :
           {bytes, payload.SerializeAsString() + fields.SerializeAsString()}) {
        const auto view = parser.ParseResponse(CutFrame(rng, encoding));
        ASSERT_TRUE(view.ok()) << view.status();
        EXPECT_EQ(view->header.sequence, response.header.sequence);
        EXPECT_EQ(view->header.num_rows, response.header.num_rows);
        EXPECT_EQ(view->header.flags, response.header.flags);
        EXPECT_EQ(view->header.queue_ns, response.header.queue_ns);
        EXPECT_EQ(view->header.compute_ns, response.header.compute_ns);
        EXPECT_EQ(Text(view->partial_sums), response.sums);
      }
    }
  }
}

TEST(ForwardResponseTest, SaysWhatIsWrong) {
  ForwardFrameParser parser(3);
  const auto error = [&](const ForwardResponseHeader& header, size_t bytes) {
    const auto view =
        parser.ParseResponse(MakeForwardResponse(header, grpc::Slice(std::string(bytes, 'x'))));
    EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(view.status().message());
  };
  EXPECT_THAT(error({.num_rows = 0}, 0), HasSubstr("num_rows 0"));
  EXPECT_THAT(error({.num_rows = 2, .flags = 1}, 12), HasSubstr("flags 0x1"));
  EXPECT_THAT(error({.num_rows = 2}, 13), HasSubstr("partial_sums: 13 bytes, expected 12"));
  EXPECT_THAT(error({.num_rows = 2, .flags = kReplyF32}, 12),
              HasSubstr("partial_sums: 12 bytes, expected 24 (2 rows of 3 values of 4 bytes)"));
  EXPECT_THAT(error({.num_rows = 0xffffffffu}, 12), HasSubstr("num_rows 4294967295"));
}

}  // namespace
}  // namespace banyan
