#include "common/rpc/payload_buffer.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "common/base/check.h"

namespace banyan {
namespace {
constexpr size_t kAlignment = 64;
// One is being filled, the others may still be held by gRPC. A peer that stopped reading can pin
// more: those are given up here and freed when their stream ends.
constexpr size_t kMaxIdleBlocks = 3;
}  // namespace

struct alignas(kAlignment) PayloadBuffer::Block {
  std::atomic<int> refs{1};
  size_t capacity = 0;
  std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }
};

PayloadBuffer::Block* PayloadBuffer::NewBlock(size_t capacity) {
  capacity = (capacity + 4095) / 4096 * 4096;
  void* memory = std::aligned_alloc(kAlignment, sizeof(Block) + capacity);
  CHECK(memory != nullptr);
  Block* block = new (memory) Block;
  block->capacity = capacity;
  return block;
}

void PayloadBuffer::Unref(void* memory) {
  Block* block = static_cast<Block*>(memory);
  if (block->refs.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    block->~Block();
    std::free(memory);
  }
}

PayloadBuffer::~PayloadBuffer() {
  for (Block* block : blocks_) Unref(block);
}

std::span<std::byte> PayloadBuffer::Prepare(size_t size) {
  // A count of one is ours alone; the acquire pairs with the release of the last other reference.
  const auto idle = std::find_if(blocks_.begin(), blocks_.end(), [](Block* block) {
    return block->refs.load(std::memory_order_acquire) == 1;
  });
  Block* block = nullptr;
  if (idle != blocks_.end()) {
    block = *idle;
    blocks_.erase(idle);
    if (block->capacity < size) {
      Unref(block);
      block = nullptr;
    }
  } else if (blocks_.size() >= kMaxIdleBlocks) {
    Unref(blocks_.front());
    blocks_.erase(blocks_.begin());
  }
  if (block == nullptr) block = NewBlock(size);
  blocks_.push_back(block);
  return {block->data(), size};
}

grpc::Slice PayloadBuffer::Share(size_t size) {
  CHECK(!blocks_.empty() && size <= blocks_.back()->capacity);
  Block* block = blocks_.back();
  block->refs.fetch_add(1, std::memory_order_relaxed);
  return grpc::Slice(block->data(), size, &PayloadBuffer::Unref, block);
}

}  // namespace banyan
