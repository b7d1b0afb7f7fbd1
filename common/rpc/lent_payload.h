// Memory of somebody else's making for the payload of outgoing frames, such as memory that a device
// writes to by itself. As in payload_buffer.h, gRPC may hold the bytes longer than the call lasts.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace banyan {

// Hands out blocks that no slice refers to any more, and slices of them. Owned by one thread;
// slices may be released by any thread, may outlive this, and keep their block alive.
class LentPayload {
 public:
  // Each of `block_bytes`.
  LentPayload(std::vector<std::shared_ptr<std::byte>> blocks, size_t block_bytes);

  // A block; null where slices refer to all of them.
  std::byte* Take();
  // What Take returned last.
  std::byte* taken() const;

  // The first `size` bytes of that block, uncopied. They must not be written until Take returns it
  // again.
  grpc::Slice Share(size_t size);

 private:
  struct Block;
  static void Release(void* owner);

  std::vector<std::shared_ptr<Block>> blocks_;
  const size_t block_bytes_;
  std::shared_ptr<Block> taken_;
};

}  // namespace banyan
