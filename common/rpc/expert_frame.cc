#include "common/rpc/expert_frame.h"

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/trace_context.h"
#include "common/rpc/channel_settings.h"
#include "proto/expert/v1/expert.pb.h"

namespace banyan {
namespace {

static_assert(std::endian::native == std::endian::little,
              "frames are copied as they lie in memory");

// Protobuf tags: field number << 3 | wire type (1: 64-bit, 2: length-delimited, 5: 32-bit).
constexpr uint8_t Fixed64Tag(int field) { return static_cast<uint8_t>(field << 3 | 1); }
constexpr uint8_t BytesTag(int field) { return static_cast<uint8_t>(field << 3 | 2); }
constexpr uint8_t Fixed32Tag(int field) { return static_cast<uint8_t>(field << 3 | 5); }

constexpr size_t kFixed64Bytes = 1 + sizeof(uint64_t);
constexpr size_t kFixed32Bytes = 1 + sizeof(uint32_t);
constexpr size_t kRequestFixedBytes = 2 * kFixed64Bytes + 5 * kFixed32Bytes;
constexpr size_t kResponseFixedBytes = kFixed64Bytes + 4 * kFixed32Bytes;
constexpr size_t kMaxVarintBytes = 5;  // lengths are below 2^32
constexpr size_t kMaxPayloadBytes = std::numeric_limits<int32_t>::max();

class Writer {
 public:
  explicit Writer(uint8_t* to) : to_(to) {}
  void Fixed64(int field, uint64_t value) { Fixed(Fixed64Tag(field), value); }
  void Fixed32(int field, uint32_t value) { Fixed(Fixed32Tag(field), value); }
  void BytesHead(int field, size_t size) {
    *to_++ = BytesTag(field);
    for (; size >= 0x80; size >>= 7) *to_++ = static_cast<uint8_t>(size | 0x80);
    *to_++ = static_cast<uint8_t>(size);
  }
  void Copy(const void* from, size_t size) {
    if (size != 0) std::memcpy(to_, from, size);
    to_ += size;
  }
  const uint8_t* position() const { return to_; }

 private:
  template <typename T>
  void Fixed(uint8_t tag, T value) {
    *to_++ = tag;
    std::memcpy(to_, &value, sizeof(value));
    to_ += sizeof(value);
  }
  uint8_t* to_;
};

size_t BytesHeadSize(size_t payload) {
  size_t size = 2;
  for (; payload >= 0x80; payload >>= 7) ++size;
  return size;
}

// Walks over the slices of a frame; borrows them.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) remaining_ += slice.size();
  }
  size_t remaining() const { return remaining_; }

  bool Read(void* to, size_t size) {
    if (size > remaining_) return false;
    auto* out = static_cast<uint8_t*>(to);
    while (size > 0) {
      const size_t part = std::min(size, Here());
      std::memcpy(out, slices_[slice_].begin() + offset_, part);
      out += part;
      size -= part;
      Skip(part);
    }
    return true;
  }

  // The next `size` bytes: in place when they lie in one slice, else copied to `storage`.
  bool Take(size_t size, std::string& storage, std::span<const std::byte>* out) {
    if (size > remaining_) return false;
    if (size == 0) {
      *out = {};
      return true;
    }
    if (size <= Here()) {
      *out = {reinterpret_cast<const std::byte*>(slices_[slice_].begin() + offset_), size};
      Skip(size);
      return true;
    }
    storage.resize(size);
    *out = {reinterpret_cast<const std::byte*>(storage.data()), size};
    return Read(storage.data(), size);
  }

  // Tag of `field` and a length; false when anything else is next.
  bool BytesHead(int field, size_t* size) {
    uint8_t byte = 0;
    if (!Read(&byte, 1) || byte != BytesTag(field)) return false;
    uint64_t value = 0;
    for (size_t i = 0; i < kMaxVarintBytes; ++i) {
      if (!Read(&byte, 1)) return false;
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if ((byte & 0x80) == 0) {
        *size = value;
        return value <= kMaxPayloadBytes;
      }
    }
    return false;
  }

 private:
  // Bytes left in the current slice, never 0 while bytes remain.
  size_t Here() {
    while (offset_ == slices_[slice_].size()) {
      ++slice_;
      offset_ = 0;
    }
    return slices_[slice_].size() - offset_;
  }
  void Skip(size_t size) {
    offset_ += size;
    remaining_ -= size;
  }

  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t offset_ = 0;
  size_t remaining_ = 0;
};

template <typename T>
bool FixedAt(const uint8_t* from, uint8_t tag, T* value) {
  std::memcpy(value, from + 1, sizeof(T));
  return *from == tag;
}

std::span<const std::byte> BytesOf(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace

absl::Status CheckForwardFlags(uint32_t flags) {
  if ((flags & ~uint32_t{kActivationsF32 | kReplyF32}) == 0) return absl::OkStatus();
  return InvalidArgumentF("ForwardRequest flags {:#x}: only bits 0 and 1 have a meaning", flags);
}

grpc::ByteBuffer MakeForwardRequest(const ForwardRequestHeader& header,
                                    std::span<const uint16_t> expert_ids,
                                    std::span<const float> weights, grpc::Slice activations,
                                    std::string_view trace) {
  const size_t head_bytes = kRequestFixedBytes + BytesHeadSize(expert_ids.size_bytes()) +
                            expert_ids.size_bytes() + BytesHeadSize(weights.size_bytes()) +
                            weights.size_bytes() + BytesHeadSize(activations.size());
  grpc::Slice head(head_bytes);
  Writer writer(const_cast<uint8_t*>(head.begin()));
  writer.Fixed64(1, header.sequence);
  writer.Fixed64(2, header.step);
  writer.Fixed32(3, header.layer);
  writer.Fixed32(4, header.num_rows);
  writer.Fixed32(5, header.top_k);
  writer.Fixed32(6, header.flags);
  writer.Fixed32(7, header.attempt);
  writer.BytesHead(8, expert_ids.size_bytes());
  writer.Copy(expert_ids.data(), expert_ids.size_bytes());
  writer.BytesHead(9, weights.size_bytes());
  writer.Copy(weights.data(), weights.size_bytes());
  writer.BytesHead(10, activations.size());
  CHECK(writer.position() == head.end());
  std::array<grpc::Slice, 3> slices = {std::move(head), std::move(activations)};
  if (trace.empty()) return grpc::ByteBuffer(slices.data(), 2);
  slices[2] = grpc::Slice(BytesHeadSize(trace.size()) + trace.size());
  Writer tail(const_cast<uint8_t*>(slices[2].begin()));
  tail.BytesHead(11, trace.size());
  tail.Copy(trace.data(), trace.size());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer MakeForwardResponse(const ForwardResponseHeader& header,
                                     grpc::Slice partial_sums) {
  grpc::Slice head(kResponseFixedBytes + BytesHeadSize(partial_sums.size()));
  Writer writer(const_cast<uint8_t*>(head.begin()));
  writer.Fixed64(1, header.sequence);
  writer.Fixed32(2, header.num_rows);
  writer.Fixed32(3, header.flags);
  writer.Fixed32(4, header.queue_ns);
  writer.Fixed32(5, header.compute_ns);
  writer.BytesHead(6, partial_sums.size());
  CHECK(writer.position() == head.end());
  const std::array<grpc::Slice, 2> slices = {std::move(head), std::move(partial_sums)};
  return grpc::ByteBuffer(slices.data(), slices.size());
}

class ForwardFrameParser::Impl {
 public:
  explicit Impl(int32_t hidden_size) : hidden_size_(static_cast<uint64_t>(hidden_size)) {
    CHECK(hidden_size > 0);
  }

  absl::StatusOr<ForwardRequestView> ParseRequest(const grpc::ByteBuffer& frame) {
    RETURN_IF_ERROR(Open("ForwardRequest", frame));
    ForwardRequestView view;
    if (!FastRequest(&view)) {
      view.trace = {};
      RETURN_IF_ERROR(ParseGenerated("ForwardRequest", request_));
      view.header = {.sequence = request_.sequence(),
                     .step = request_.step(),
                     .layer = request_.layer(),
                     .num_rows = request_.num_rows(),
                     .top_k = request_.top_k(),
                     .flags = request_.flags(),
                     .attempt = request_.attempt()};
      view.expert_ids = BytesOf(request_.expert_ids());
      view.weights = BytesOf(request_.weights());
      view.activations = BytesOf(request_.activations());
      view.trace = request_.trace();
    }
    RETURN_IF_ERROR(CheckRequest(view));
    return view;
  }

  absl::StatusOr<ForwardResponseView> ParseResponse(const grpc::ByteBuffer& frame) {
    RETURN_IF_ERROR(Open("ForwardResponse", frame));
    ForwardResponseView view;
    if (!FastResponse(&view)) {
      RETURN_IF_ERROR(ParseGenerated("ForwardResponse", response_));
      view.header = {.sequence = response_.sequence(),
                     .num_rows = response_.num_rows(),
                     .flags = response_.flags(),
                     .queue_ns = response_.queue_ns(),
                     .compute_ns = response_.compute_ns()};
      view.partial_sums = BytesOf(response_.partial_sums());
    }
    RETURN_IF_ERROR(CheckResponse(view));
    return view;
  }

 private:
  absl::Status Open(std::string_view message, const grpc::ByteBuffer& frame) {
    slices_.clear();
    if (!frame.Valid() || !frame.Dump(&slices_).ok()) {
      return InvalidArgumentF("{}: the frame cannot be read", message);
    }
    frame_bytes_ = 0;
    for (const grpc::Slice& slice : slices_) frame_bytes_ += slice.size();
    if (frame_bytes_ > kMaxMessageBytes) {
      return InvalidArgumentF("{} of {} bytes, expected at most {}", message, frame_bytes_,
                              kMaxMessageBytes);
    }
    return absl::OkStatus();
  }

  bool FastRequest(ForwardRequestView* view) {
    Cursor cursor(slices_);
    uint8_t fixed[kRequestFixedBytes];
    if (!cursor.Read(fixed, sizeof(fixed))) return false;
    ForwardRequestHeader& header = view->header;
    const uint8_t* at = fixed;
    if (!FixedAt(at, Fixed64Tag(1), &header.sequence)) return false;
    if (!FixedAt(at += kFixed64Bytes, Fixed64Tag(2), &header.step)) return false;
    if (!FixedAt(at += kFixed64Bytes, Fixed32Tag(3), &header.layer)) return false;
    if (!FixedAt(at += kFixed32Bytes, Fixed32Tag(4), &header.num_rows)) return false;
    if (!FixedAt(at += kFixed32Bytes, Fixed32Tag(5), &header.top_k)) return false;
    if (!FixedAt(at += kFixed32Bytes, Fixed32Tag(6), &header.flags)) return false;
    if (!FixedAt(at + kFixed32Bytes, Fixed32Tag(7), &header.attempt)) return false;
    size_t size = 0;
    if (!cursor.BytesHead(8, &size) || !cursor.Take(size, storage_[0], &view->expert_ids) ||
        !cursor.BytesHead(9, &size) || !cursor.Take(size, storage_[1], &view->weights) ||
        !cursor.BytesHead(10, &size) || !cursor.Take(size, storage_[2], &view->activations)) {
      return false;
    }
    if (cursor.remaining() == 0) return true;
    std::span<const std::byte> trace;
    if (!cursor.BytesHead(11, &size) || !cursor.Take(size, storage_[3], &trace)) return false;
    view->trace = {reinterpret_cast<const char*>(trace.data()), trace.size()};
    return cursor.remaining() == 0;
  }

  bool FastResponse(ForwardResponseView* view) {
    Cursor cursor(slices_);
    uint8_t fixed[kResponseFixedBytes];
    if (!cursor.Read(fixed, sizeof(fixed))) return false;
    ForwardResponseHeader& header = view->header;
    const uint8_t* at = fixed;
    if (!FixedAt(at, Fixed64Tag(1), &header.sequence)) return false;
    if (!FixedAt(at += kFixed64Bytes, Fixed32Tag(2), &header.num_rows)) return false;
    if (!FixedAt(at += kFixed32Bytes, Fixed32Tag(3), &header.flags)) return false;
    if (!FixedAt(at += kFixed32Bytes, Fixed32Tag(4), &header.queue_ns)) return false;
    if (!FixedAt(at + kFixed32Bytes, Fixed32Tag(5), &header.compute_ns)) return false;
    size_t size = 0;
    return cursor.BytesHead(6, &size) && cursor.Take(size, storage_[0], &view->partial_sums) &&
           cursor.remaining() == 0;
  }

  // Any order, subset, repetition or extension that protobuf allows.
  template <typename Message>
  absl::Status ParseGenerated(std::string_view name, Message& message) {
    Cursor cursor(slices_);
    std::span<const std::byte> bytes;
    CHECK(cursor.Take(frame_bytes_, storage_[0], &bytes));
    if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
      return InvalidArgumentF("{} of {} bytes is not a protobuf message of that type", name,
                              frame_bytes_);
    }
    return absl::OkStatus();
  }

  absl::Status CheckRequest(const ForwardRequestView& view) const {
    const ForwardRequestHeader& header = view.header;
    RETURN_IF_ERROR(CheckCount("ForwardRequest", "num_rows", header.num_rows));
    RETURN_IF_ERROR(CheckCount("ForwardRequest", "top_k", header.top_k));
    RETURN_IF_ERROR(CheckForwardFlags(header.flags));
    const uint64_t rows = header.num_rows;
    RETURN_IF_ERROR(CheckSize("ForwardRequest", "expert_ids", view.expert_ids.size(), rows,
                              header.top_k, sizeof(uint16_t)));
    RETURN_IF_ERROR(CheckSize("ForwardRequest", "weights", view.weights.size(), rows, header.top_k,
                              sizeof(float)));
    RETURN_IF_ERROR(CheckSize("ForwardRequest", "activations", view.activations.size(), rows,
                              hidden_size_, ActivationBytes(header.flags)));
    if (view.trace.empty()) return absl::OkStatus();
    return Annotate(ParseTrace(view.trace).status(), "ForwardRequest");
  }

  absl::Status CheckResponse(const ForwardResponseView& view) const {
    const ForwardResponseHeader& header = view.header;
    RETURN_IF_ERROR(CheckCount("ForwardResponse", "num_rows", header.num_rows));
    if ((header.flags & ~uint32_t{kReplyF32}) != 0) {
      return InvalidArgumentF("ForwardResponse flags {:#x}: only bit 1 has a meaning",
                              header.flags);
    }
    return CheckSize("ForwardResponse", "partial_sums", view.partial_sums.size(), header.num_rows,
                     hidden_size_, ReplyBytes(header.flags));
  }

  // Counts come from the peer. A count above the frame's bytes cannot have its payload; below it
  // (2^26) no product of two counts overflows.
  absl::Status CheckCount(std::string_view message, std::string_view name, uint32_t count) const {
    if (count == 0 || count > frame_bytes_) {
      return InvalidArgumentF(
          "{} {} {} in a frame of {} bytes: expected at least 1 and no more "
          "than the payload holds",
          message, name, count, frame_bytes_);
    }
    return absl::OkStatus();
  }

  absl::Status CheckSize(std::string_view message, std::string_view name, size_t found,
                         uint64_t rows, uint64_t columns, uint64_t item_bytes) const {
    if (found != rows * columns * item_bytes) {
      return InvalidArgumentF("{} {}: {} bytes, expected {} ({} rows of {} values of {} bytes)",
                              message, name, found, rows * columns * item_bytes, rows, columns,
                              item_bytes);
    }
    return absl::OkStatus();
  }

  const uint64_t hidden_size_;
  size_t frame_bytes_ = 0;
  std::vector<grpc::Slice> slices_;
  std::array<std::string, 4> storage_;
  expert::v1::ForwardRequest request_;
  expert::v1::ForwardResponse response_;
};

ForwardFrameParser::ForwardFrameParser(int32_t hidden_size)
    : impl_(std::make_unique<Impl>(hidden_size)) {}
ForwardFrameParser::~ForwardFrameParser() = default;
ForwardFrameParser::ForwardFrameParser(ForwardFrameParser&&) noexcept = default;
ForwardFrameParser& ForwardFrameParser::operator=(ForwardFrameParser&&) noexcept = default;

absl::StatusOr<ForwardRequestView> ForwardFrameParser::ParseRequest(const grpc::ByteBuffer& frame) {
  return impl_->ParseRequest(frame);
}
absl::StatusOr<ForwardResponseView> ForwardFrameParser::ParseResponse(
    const grpc::ByteBuffer& frame) {
  return impl_->ParseResponse(frame);
}

}  // namespace banyan
