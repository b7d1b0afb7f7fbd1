#include "services/trunk/server/answer_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/services/trunk/server/demo_codec.h"
#include "tests/unit/services/trunk/server/scripted_engine.h"

namespace banyan::trunk {
namespace {

using inference::v1::GenerateResponse;
using ::testing::ElementsAre;
using Taken = AnswerBuffer::Taken;

class AnswerBufferTest : public ::testing::Test {
 protected:
  void Make(std::vector<std::string> stop = {}, size_t max_pending_bytes = 1 << 20) {
    AnswerBuffer::Options options;
    options.request_id = "r-1";
    options.prompt_tokens = 4;
    options.stop = std::move(stop);
    options.tokenizer = &DemoCodec().tokenizer();
    options.max_pending_bytes = max_pending_bytes;
    buffer_ = std::make_unique<AnswerBuffer>(std::move(options), [this] { ++wakes_; });
  }
  Taken Take() { return buffer_->Take(message_); }
  void Tokens(const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) buffer_->OnToken(id, false, nullptr);
  }

  std::unique_ptr<AnswerBuffer> buffer_;
  GenerateResponse message_;
  int wakes_ = 0;
};

TEST_F(AnswerBufferTest, OneMessagePerEventWhileTheWriterKeepsUp) {
  Make();
  const std::vector<int32_t> ids = DemoCodec().Encode("the sun");
  EXPECT_EQ(Take(), Taken::kNothing);
  buffer_->OnStarted({});
  EXPECT_EQ(wakes_, 1);
  ASSERT_EQ(Take(), Taken::kMessage);
  EXPECT_EQ(message_.started().request_id(), "r-1");
  EXPECT_EQ(message_.started().prompt_tokens(), 4);
  std::string text;
  for (const int32_t id : ids) {
    EXPECT_EQ(Take(), Taken::kNothing);
    buffer_->OnToken(id, false, nullptr);
    ASSERT_EQ(Take(), Taken::kMessage);
    EXPECT_THAT(message_.chunk().token_ids(), ElementsAre(id));
    text += message_.chunk().text();
  }
  EXPECT_EQ(text, "the sun");
  FinishInfo info;
  info.reason = FinishReason::kLength;
  info.prompt_tokens = 4;
  info.completion_tokens = static_cast<int32_t>(ids.size());
  info.timings.decode = absl::Milliseconds(1500);
  buffer_->OnFinished(info);
  ASSERT_EQ(Take(), Taken::kLast);
  EXPECT_EQ(message_.finished().reason(), inference::v1::LENGTH);
  EXPECT_EQ(message_.finished().timings().decode_seconds(), 1.5);
  EXPECT_EQ(Take(), Taken::kNothing);
}

TEST_F(AnswerBufferTest, TokensGatherWhileTheWriterIsBusy) {
  Make();
  buffer_->OnStarted({});
  const std::vector<int32_t> ids = DemoCodec().Encode("one two three");
  Tokens(ids);
  EXPECT_EQ(wakes_, 0);  // nobody waits
  ASSERT_EQ(Take(), Taken::kMessage);
  EXPECT_TRUE(message_.has_started());
  ASSERT_EQ(Take(), Taken::kMessage);
  EXPECT_EQ(message_.chunk().text(), "one two three");
  EXPECT_EQ(message_.chunk().token_ids_size(), static_cast<int>(ids.size()));
  EXPECT_EQ(Take(), Taken::kNothing);
  Tokens(ids);
  EXPECT_EQ(wakes_, 1);  // once, not once per token
}

TEST_F(AnswerBufferTest, StopStringEndsTheText) {
  Make({"two"});
  bool stopped = false;
  for (const int32_t id : DemoCodec().Encode("one two three")) {
    stopped = buffer_->OnToken(id, false, nullptr);
    if (stopped) break;
  }
  EXPECT_TRUE(stopped);
  buffer_->OnFinished(Ended(FinishReason::kStop));
  ASSERT_EQ(Take(), Taken::kMessage);
  EXPECT_EQ(message_.chunk().text(), "one ");
  ASSERT_EQ(Take(), Taken::kLast);
  EXPECT_EQ(message_.finished().stop_match(), "two");
}

TEST_F(AnswerBufferTest, EndTokenHasAnIdAndNoText) {
  Make();
  buffer_->OnToken(1002, true, nullptr);
  buffer_->OnFinished(Ended(FinishReason::kStop, 1002));
  ASSERT_EQ(Take(), Taken::kMessage);
  EXPECT_THAT(message_.chunk().token_ids(), ElementsAre(1002));
  EXPECT_EQ(message_.chunk().text(), "");
  ASSERT_EQ(Take(), Taken::kLast);
  EXPECT_EQ(message_.finished().stop_match(), "<|im_end|>");
}

TEST_F(AnswerBufferTest, HeldTextComesWithTheEnd) {
  Make({"three!"});
  Tokens(DemoCodec().Encode("one thre"));
  buffer_->OnFinished(Ended(FinishReason::kLength));
  std::string text;
  Taken taken;
  while ((taken = Take()) == Taken::kMessage) text += message_.chunk().text();
  EXPECT_EQ(taken, Taken::kLast);
  EXPECT_EQ(text, "one thre");
}

TEST_F(AnswerBufferTest, ErrorsEndTheCallAfterWhatWasSaid) {
  Make();
  Tokens(DemoCodec().Encode("one"));
  FinishInfo info;
  info.status = absl::UnavailableError("shard 1 is gone");
  buffer_->OnFinished(info);
  ASSERT_EQ(Take(), Taken::kMessage);
  EXPECT_EQ(message_.chunk().text(), "one");
  ASSERT_EQ(Take(), Taken::kEnd);
  EXPECT_EQ(buffer_->status(), absl::UnavailableError("shard 1 is gone"));
}

TEST_F(AnswerBufferTest, WhatWaitsIsBounded) {
  Make({}, 1000);
  TokenLogprobs logprobs;
  logprobs.top_ids.assign(20, 1);
  logprobs.top_logprobs.assign(20, -1.0f);
  int tokens = 0;
  while (!buffer_->OnToken(5, false, &logprobs)) ++tokens;
  EXPECT_GT(tokens, 3);
  EXPECT_LT(tokens, 6);
  buffer_->OnFinished(Ended(FinishReason::kStop));
  EXPECT_EQ(Take(), Taken::kOverflow);
}

TEST_F(AnswerBufferTest, LogprobsStandBesideTheirTokens) {
  Make();
  TokenLogprobs logprobs;
  logprobs.token_id = 5;
  logprobs.logprob = -0.5f;
  logprobs.top_ids = {5, 9};
  logprobs.top_logprobs = {-0.5f, -2.0f};
  buffer_->OnStarted({logprobs});
  buffer_->OnToken(5, false, &logprobs);
  ASSERT_EQ(Take(), Taken::kMessage);
  ASSERT_EQ(message_.started().prompt_logprobs_size(), 1);
  ASSERT_EQ(Take(), Taken::kMessage);
  ASSERT_EQ(message_.chunk().logprobs_size(), 1);
  EXPECT_THAT(message_.chunk().logprobs(0).top_ids(), ElementsAre(5, 9));
  EXPECT_THAT(message_.chunk().logprobs(0).top_logprobs(), ElementsAre(-0.5f, -2.0f));
}

}  // namespace
}  // namespace banyan::trunk
