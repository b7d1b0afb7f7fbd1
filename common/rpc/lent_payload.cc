#include "common/rpc/lent_payload.h"

#include <atomic>
#include <utility>

#include "common/base/check.h"

namespace banyan {

struct LentPayload::Block {
  explicit Block(std::shared_ptr<std::byte> lent) : memory(std::move(lent)) {}

  const std::shared_ptr<std::byte> memory;
  std::atomic<int> slices{0};
};

LentPayload::LentPayload(std::vector<std::shared_ptr<std::byte>> blocks, size_t block_bytes)
    : block_bytes_(block_bytes) {
  for (std::shared_ptr<std::byte>& block : blocks) {
    blocks_.push_back(std::make_shared<Block>(std::move(block)));
  }
}

std::byte* LentPayload::Take() {
  taken_ = nullptr;
  for (const std::shared_ptr<Block>& block : blocks_) {
    // Pairs with the release of the last slice, after whatever read its bytes.
    if (block->slices.load(std::memory_order_acquire) > 0) continue;
    taken_ = block;
    break;
  }
  return taken();
}

std::byte* LentPayload::taken() const { return taken_ == nullptr ? nullptr : taken_->memory.get(); }

grpc::Slice LentPayload::Share(size_t size) {
  CHECK(taken_ != nullptr && size <= block_bytes_);
  taken_->slices.fetch_add(1, std::memory_order_relaxed);
  return grpc::Slice(taken_->memory.get(), size, &LentPayload::Release,
                     new std::shared_ptr<Block>(taken_));
}

void LentPayload::Release(void* owner) {
  const std::unique_ptr<std::shared_ptr<Block>> block(static_cast<std::shared_ptr<Block>*>(owner));
  (*block)->slices.fetch_sub(1, std::memory_order_release);
}

}  // namespace banyan
