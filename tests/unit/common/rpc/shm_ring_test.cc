#include "common/rpc/shm_ring.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/trace_context.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using testing::HasSubstr;

constexpr ShmRingGeometry kGeometry = {.max_rows = 5, .max_top_k = 3, .hidden_size = 64};

// Where hosts get memory from.
struct Inbox {
  Inbox() {
    auto made = MemoryInbox::Create(path);
    EXPECT_TRUE(made.ok()) << made.status();
    inbox = *std::move(made);
  }
  // Memory under its own name.
  std::unique_ptr<ShmRingCaller> NewCaller() const {
    auto made = ShmRingCaller::Create(kGeometry);
    EXPECT_TRUE(made.ok()) << made.status();
    const absl::Status sent = (*made)->HandOver(path);
    EXPECT_TRUE(sent.ok()) << sent;
    return *std::move(made);
  }

  const test::TempDir temp;
  const std::string path = temp.File("e.memory");
  std::unique_ptr<MemoryInbox> inbox;
};

struct Pair : Inbox {
  Pair() {
    caller = NewCaller();
    auto opened = ShmRingHost::Open(*inbox, caller->offer(), kGeometry);
    EXPECT_TRUE(opened.ok()) << opened.status();
    host = *std::move(opened);
  }

  void Post(uint64_t sequence, uint32_t rows, uint32_t flags = kActivationsF32 | kReplyF32,
            std::string_view trace = {}) {
    std::memset(caller->Rows(), static_cast<int>(sequence), rows * kGeometry.hidden_size * 4);
    const std::vector<uint16_t> ids(size_t{rows} * 2, static_cast<uint16_t>(sequence));
    const std::vector<float> weights(ids.size(), static_cast<float>(sequence));
    caller->Post({.sequence = sequence, .num_rows = rows, .top_k = 2, .flags = flags}, ids, weights,
                 trace);
  }

  // The request's first activation byte to all sums.
  void AnswerNext() {
    const auto request = host->TakeRequest();
    ASSERT_TRUE(request.ok()) << request.status();
    const ForwardRequestHeader& header = request->header;
    std::memset(host->Sums(), static_cast<int>(request->activations[0]),
                header.num_rows * kGeometry.hidden_size * 4);
    host->Answer({.sequence = header.sequence,
                  .num_rows = header.num_rows,
                  .flags = header.flags & kReplyF32});
  }

  std::unique_ptr<ShmRingCaller> caller;
  std::unique_ptr<ShmRingHost> host;
};

TEST(ShmRingTest, CarriesARequestAndItsAnswer) {
  Pair pair;
  EXPECT_FALSE(pair.host->HasRequest());
  std::string trace;
  ASSERT_TRUE(AppendTrace({.request_id = "r-1", .traceparent = ""}, &trace));
  pair.Post(7, 3, kActivationsF32 | kReplyF32, trace);
  ASSERT_TRUE(pair.host->HasRequest());
  const auto request = pair.host->TakeRequest();
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FALSE(pair.host->HasRequest());
  EXPECT_EQ(request->header.sequence, 7u);
  EXPECT_EQ(request->header.num_rows, 3u);
  EXPECT_EQ(request->trace, trace);
  ASSERT_EQ(request->expert_ids.size(), 3 * 2 * sizeof(uint16_t));
  EXPECT_EQ(request->expert_ids[0], std::byte{7});
  ASSERT_EQ(request->weights.size(), 3 * 2 * sizeof(float));
  float weight;
  std::memcpy(&weight, request->weights.data(), sizeof(weight));
  EXPECT_EQ(weight, 7.0f);
  ASSERT_EQ(request->activations.size(), 3 * 64 * sizeof(float));
  EXPECT_EQ(request->activations.back(), std::byte{7});

  EXPECT_FALSE(pair.caller->HasAnswer());
  std::memset(pair.host->Sums(), 9, 3 * 64 * sizeof(float));
  pair.host->Answer({.sequence = 7, .num_rows = 3, .flags = kReplyF32, .compute_ns = 11});
  ASSERT_TRUE(pair.caller->HasAnswer());
  const ForwardResponseView answer = pair.caller->TakeAnswer();
  EXPECT_EQ(answer.header.sequence, 7u);
  EXPECT_EQ(answer.header.compute_ns, 11u);
  ASSERT_EQ(answer.partial_sums.size(), 3 * 64 * sizeof(float));
  EXPECT_EQ(answer.partial_sums.back(), std::byte{9});
  EXPECT_FALSE(pair.caller->HasAnswer());
}

TEST(ShmRingTest, BF16TakesHalfTheBytes) {
  Pair pair;
  pair.Post(1, 5, 0);
  const auto request = pair.host->TakeRequest();
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->activations.size(), 5 * 64 * 2u);
  pair.host->Answer({.sequence = 1, .num_rows = 5});
  EXPECT_EQ(pair.caller->TakeAnswer().partial_sums.size(), 5 * 64 * 2u);
}

TEST(ShmRingTest, TwoCallsAreUnderWayAtOnce) {
  Pair pair;
  for (uint64_t sequence = 1; sequence < 200; sequence += 2) {
    pair.Post(sequence, 2);
    ASSERT_TRUE(pair.caller->CanPost());
    pair.Post(sequence + 1, 5);
    ASSERT_FALSE(pair.caller->CanPost());
    pair.AnswerNext();
    const ForwardResponseView first = pair.caller->TakeAnswer();
    pair.AnswerNext();  // does not touch the first one's sums
    const ForwardResponseView second = pair.caller->TakeAnswer();
    EXPECT_EQ(first.header.sequence, sequence);
    EXPECT_EQ(second.header.sequence, sequence + 1);
    EXPECT_EQ(first.partial_sums.back(), std::byte(sequence));
    EXPECT_EQ(second.partial_sums.back(), std::byte(sequence + 1));
  }
}

// Both sides sleep between their turns, and now and then they do not.
TEST(ShmRingTest, NoWakeUpIsLost) {
  Pair pair;
  constexpr uint64_t kCalls = 3000;
  std::thread host([&pair] {
    while (true) {
      if (!pair.host->HasRequest()) pair.host->Sleep();
      if (pair.host->closed()) return;
      if (!pair.host->HasRequest()) continue;
      const auto request = pair.host->TakeRequest();
      ASSERT_TRUE(request.ok());
      if (request->header.sequence % 7 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
      pair.host->Answer({.sequence = request->header.sequence, .num_rows = 1});
    }
  });
  for (uint64_t sequence = 1; sequence <= kCalls; ++sequence) {
    pair.Post(sequence, 1);
    while (!pair.caller->HasAnswer()) pair.caller->Wait(std::chrono::hours(1));
    ASSERT_EQ(pair.caller->TakeAnswer().header.sequence, sequence);
    if (sequence % 11 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  pair.host->Close();
  host.join();
}

TEST(ShmRingTest, AWaitEndsAfterItsTime) {
  Pair pair;
  pair.Post(1, 1);
  pair.caller->Wait(std::chrono::milliseconds(1));
  EXPECT_FALSE(pair.caller->HasAnswer());
}

TEST(ShmRingTest, AnotherProcessOpensIt) {
  const Inbox inbox;
  const std::unique_ptr<ShmRingCaller> caller = inbox.NewCaller();
  const pid_t child = fork();
  if (child == 0) {
    const auto opened = ShmRingHost::Open(*inbox.inbox, caller->offer(), kGeometry);
    if (!opened.ok()) _exit(1);
    while (!(*opened)->HasRequest()) (*opened)->Sleep();
    const auto request = (*opened)->TakeRequest();
    if (!request.ok()) _exit(2);
    std::memset((*opened)->Sums(), 3, kGeometry.hidden_size * 4);
    (*opened)->Answer({.sequence = request->header.sequence, .num_rows = 1, .flags = kReplyF32});
    _exit(0);
  }
  std::memset(caller->Rows(), 1, kGeometry.hidden_size * 4);
  const std::vector<uint16_t> ids = {1};
  const std::vector<float> weights = {1.0f};
  caller->Post({.sequence = 9, .num_rows = 1, .top_k = 1, .flags = kActivationsF32 | kReplyF32},
               ids, weights, "");
  for (int i = 0; i < 3000 && !caller->HasAnswer(); ++i) {
    caller->Wait(std::chrono::milliseconds(10));
  }
  ASSERT_TRUE(caller->HasAnswer());
  EXPECT_EQ(caller->TakeAnswer().partial_sums.back(), std::byte{3});
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(ShmRingTest, WhatIsNoOfferIsRefused) {
  const Inbox inbox;
  for (const std::string text :
       {"", "1", "00112233445566778899AABBCCDDEEFF", "00112233445566778899aabbccddeeff0",
        "00112233445566778899aabbccddee\n\xff", "1:1:00112233445566778899aabbccddee"}) {
    const auto opened = ShmRingHost::Open(*inbox.inbox, text, kGeometry);
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr("expected 32 hex")) << text;
  }
}

TEST(ShmRingTest, OnlyTheMemoryOfTheOfferIsTaken) {
  const Inbox inbox;
  const auto why = [&inbox](const std::string& text, const ShmRingGeometry& geometry = kGeometry) {
    const auto opened = ShmRingHost::Open(*inbox.inbox, text, geometry);
    EXPECT_FALSE(opened.ok());
    return std::string(opened.status().message());
  };
  // Another name, another geometry of the same size, another size; each is taken once.
  const std::unique_ptr<ShmRingCaller> first = inbox.NewCaller();
  std::string other = first->offer();
  other.back() = other.back() == '0' ? '1' : '0';
  EXPECT_THAT(why(other), HasSubstr("no memory came"));
  EXPECT_THAT(why(first->offer(), {.max_rows = 5, .max_top_k = 3, .hidden_size = 65}),
              HasSubstr("is not its memory"));
  EXPECT_THAT(why(first->offer()), HasSubstr("no memory came"));
  EXPECT_THAT(why(inbox.NewCaller()->offer(), {.max_rows = 500, .max_top_k = 3, .hidden_size = 64}),
              HasSubstr("bytes, expected"));
  // Files of other kinds, and memory under a name that it does not bear.
  const MemoryName name = {1};
  const std::string offer = "01" + std::string(30, '0');
  const auto send = [&](int fd) {
    EXPECT_TRUE(SendMemory(inbox.path, name, fd).ok());
    close(fd);
  };
  send(open(inbox.temp.File("x").c_str(), O_RDWR | O_CREAT, 0600));
  EXPECT_THAT(why(offer), HasSubstr("could shrink"));
  send(memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_THAT(why(offer), HasSubstr("could shrink"));
  send(open("/dev/null", O_RDWR));
  EXPECT_THAT(why(offer), HasSubstr("could shrink"));
  const std::unique_ptr<ShmRingCaller> whole = inbox.NewCaller();
  MemoryName whole_name;
  for (size_t i = 0; i < whole_name.size(); ++i) {
    whole_name[i] = static_cast<uint8_t>(std::stoi(whole->offer().substr(2 * i, 2), nullptr, 16));
  }
  send(dup(inbox.inbox->Take(whole_name).get()));
  EXPECT_THAT(why(offer), HasSubstr("is not its memory"));
}

TEST(ShmRingTest, RequestsAreChecked) {
  // Written past Post, which keeps to the rules: as a peer of another kind might.
  const auto refused = [](ForwardRequestHeader header, std::string_view trace = {}) {
    Pair pair;
    std::byte* const rows = pair.caller->Rows();
    pair.Post(1, 1, kReplyF32, trace);
    // The head of the slot, which begins with the header, is the page above those before the rows.
    std::byte* head = rows;
    uint64_t sequence = 0;
    while (sequence != 1) {
      head -= 4096;
      std::memcpy(&sequence, head, sizeof(sequence));
    }
    std::memcpy(head, &header, sizeof(header));
    const auto request = pair.host->TakeRequest();
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(request.status().message());
  };
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 0, .top_k = 2}), HasSubstr("num_rows 0"));
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 6, .top_k = 2}), HasSubstr("expected 1 to 5"));
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 1u << 31, .top_k = 2}), HasSubstr("num_rows"));
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 1, .top_k = 0}), HasSubstr("top_k 0"));
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 1, .top_k = 4}), HasSubstr("expected 1 to 3"));
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 1, .top_k = 2, .flags = 4}),
              HasSubstr("only bits 0 and 1"));
  EXPECT_THAT(refused({.sequence = 1, .num_rows = 1, .top_k = 2}, "no end of line"),
              HasSubstr("ForwardRequest"));
}

TEST(ShmRingTest, ImpossibleSizesAreRefused) {
  for (const ShmRingGeometry& geometry :
       {ShmRingGeometry{0, 1, 1}, {1, 0, 1}, {1, 1, 0}, {(1u << 20) + 1, 1, 1}, {1, 1, 1u << 31}}) {
    EXPECT_EQ(ShmRingCaller::Create(geometry).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace banyan
