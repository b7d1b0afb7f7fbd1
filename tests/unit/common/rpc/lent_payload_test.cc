#include "common/rpc/lent_payload.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace banyan {
namespace {

constexpr size_t kBytes = 300;

std::shared_ptr<std::byte> Memory(int* freed) {
  return {new std::byte[kBytes], [freed](std::byte* memory) {
            ++*freed;
            delete[] memory;
          }};
}

TEST(LentPayloadTest, BlocksAreHandedOutWhileNoSliceRefersToThem) {
  int freed = 0;
  const auto a = Memory(&freed);
  const auto b = Memory(&freed);
  LentPayload payload({a, b}, kBytes);
  EXPECT_EQ(payload.taken(), nullptr);
  EXPECT_EQ(payload.Take(), a.get());
  EXPECT_EQ(payload.Take(), a.get());  // was not shared
  std::optional<grpc::Slice> first = payload.Share(kBytes);
  EXPECT_EQ(static_cast<const void*>(first->begin()), a.get());
  EXPECT_EQ(first->size(), kBytes);
  EXPECT_EQ(payload.Take(), b.get());
  std::optional<grpc::Slice> second = payload.Share(10);
  std::optional<grpc::Slice> copy = *second;  // refers to the same bytes
  EXPECT_EQ(payload.Take(), nullptr);
  EXPECT_EQ(payload.taken(), nullptr);
  second.reset();
  EXPECT_EQ(payload.Take(), nullptr);
  copy.reset();
  EXPECT_EQ(payload.Take(), b.get());
  first.reset();
  EXPECT_EQ(payload.Take(), a.get());
  EXPECT_EQ(freed, 0);
}

TEST(LentPayloadTest, SlicesKeepTheirBlockAndEndOnAnyThread) {
  int freed = 0;
  std::vector<grpc::Slice> slices;
  {
    LentPayload payload({Memory(&freed), Memory(&freed)}, kBytes);
    std::memset(payload.Take(), 7, kBytes);
    slices.push_back(payload.Share(kBytes));
  }
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(slices[0].begin()[kBytes - 1], 7);
  std::thread([moved = std::move(slices)]() mutable { moved.clear(); }).join();
  EXPECT_EQ(freed, 2);
}

}  // namespace
}  // namespace banyan
