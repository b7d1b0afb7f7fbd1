// Memory for the payload of outgoing frames. gRPC reports a write as done before it lets go of the
// bytes (it buffers up to the channel's write buffer), so payload memory is reference-counted.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <span>
#include <vector>

namespace banyan {

// Hands out memory that no slice refers to any more, and slices of it. Owned by one thread; slices
// may be released by any thread and may outlive the buffer.
class PayloadBuffer {
 public:
  PayloadBuffer() = default;
  ~PayloadBuffer();
  PayloadBuffer(const PayloadBuffer&) = delete;
  PayloadBuffer& operator=(const PayloadBuffer&) = delete;

  // `size` bytes, 64-byte aligned, contents undefined. Reuses memory when nobody refers to it.
  std::span<std::byte> Prepare(size_t size);

  // The first `size` bytes of what Prepare returned last, uncopied. They must not be written until
  // the next Prepare.
  grpc::Slice Share(size_t size);

 private:
  struct Block;
  static Block* NewBlock(size_t capacity);
  static void Unref(void* block);

  std::vector<Block*> blocks_;  // the last one is what Prepare returned
};

}  // namespace banyan
