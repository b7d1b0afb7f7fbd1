#include "common/rpc/payload_buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

namespace banyan {
namespace {

TEST(PayloadBufferTest, MemoryIsAlignedAndReusedOnceReleased) {
  PayloadBuffer buffer;
  const std::byte* first = buffer.Prepare(1000).data();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  EXPECT_EQ(buffer.Prepare(4000).data(), first);  // one page either way
  { const grpc::Slice slice = buffer.Share(4000); }
  EXPECT_EQ(buffer.Prepare(1).data(), first);
}

TEST(PayloadBufferTest, MemoryThatASliceRefersToIsLeftAlone) {
  PayloadBuffer buffer;
  std::vector<grpc::Slice> slices;
  std::set<const void*> seen;
  for (int i = 0; i < 20; ++i) {
    const std::span<std::byte> memory = buffer.Prepare(300);
    EXPECT_TRUE(seen.insert(memory.data()).second);
    std::memset(memory.data(), i, memory.size());
    slices.push_back(buffer.Share(300));
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(slices[i].size(), 300u);
    for (const uint8_t byte : slices[i]) ASSERT_EQ(byte, i);
  }
}

TEST(PayloadBufferTest, SlicesOutliveTheBufferAndEndOnAnyThread) {
  std::vector<grpc::Slice> slices;
  {
    PayloadBuffer buffer;
    std::memset(buffer.Prepare(5000).data(), 7, 5000);
    slices.push_back(buffer.Share(5000));
    slices.push_back(buffer.Share(10));
  }
  EXPECT_EQ(slices[0].begin()[4999], 7);
  std::thread([moved = std::move(slices)]() mutable { moved.clear(); }).join();
}

TEST(PayloadBufferTest, GrowsAndHandsOutNothing) {
  PayloadBuffer buffer;
  EXPECT_EQ(buffer.Prepare(0).size(), 0u);
  EXPECT_EQ(buffer.Share(0).size(), 0u);
  for (size_t size : {size_t{1}, size_t{4096}, size_t{4097}, size_t{1} << 20}) {
    const std::span<std::byte> memory = buffer.Prepare(size);
    ASSERT_EQ(memory.size(), size);
    memory.front() = memory.back() = std::byte{1};
  }
}

}  // namespace
}  // namespace banyan
