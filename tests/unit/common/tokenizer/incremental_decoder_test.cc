#include "common/tokenizer/incremental_decoder.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "common/tokenizer/utf8.h"
#include "tests/unit/common/tokenizer/test_tokenizer.h"

namespace banyan {
namespace {

class IncrementalDecoderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = BpeTokenizer::Create(SmallTokenizerJson().dump(), "small");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    for (int32_t id = 0; id < 256; ++id) {
      byte_ids_[static_cast<uint8_t>(tokenizer_->TokenBytes(id)[0])] = id;
    }
  }
  std::unique_ptr<BpeTokenizer> tokenizer_;
  int32_t byte_ids_[256] = {};
};

TEST_F(IncrementalDecoderTest, WholeCharactersOnly) {
  IncrementalDecoder decoder(*tokenizer_, /*skip_special=*/false);
  std::vector<std::string> parts;
  for (const char c : std::string("a\xF0\x9F\x99\x82z\xE4\xBD!\xFF\xC3")) {
    parts.push_back(decoder.Add(byte_ids_[static_cast<uint8_t>(c)]));
  }
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "", "", "", "\xF0\x9F\x99\x82", "z", "", "",
                                             r + "!", r, ""}));
  EXPECT_EQ(decoder.Finish(), r);
  EXPECT_EQ(decoder.Finish(), "");
}

TEST_F(IncrementalDecoderTest, EqualsWholeDecodingOnRandomTokens) {
  const uint32_t seed = 7;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  // Bytes that make and break characters, added tokens, ids without an entry.
  const uint8_t bytes[] = {'a',  0x80, 0xBF, 0xC2, 0xE0, 0xA0, 0xE4, 0xBD,
                           0xED, 0x9F, 0xF0, 0x90, 0xF4, 0x8F, 0xFF, 0xC0};
  for (int round = 0; round < 20000; ++round) {
    std::vector<int32_t> ids(random() % 12);
    for (int32_t& id : ids) {
      id = random() % 8 == 0 ? 256 + static_cast<int32_t>(random() % 12)
                             : byte_ids_[bytes[random() % sizeof(bytes)]];
    }
    for (const bool skip_special : {false, true}) {
      IncrementalDecoder decoder(*tokenizer_, skip_special);
      std::string streamed;
      for (const int32_t id : ids) {
        const std::string part = decoder.Add(id);
        ASSERT_TRUE(IsValidUtf8(part));
        streamed += part;
      }
      streamed += decoder.Finish();
      ASSERT_EQ(streamed, tokenizer_->Decode(ids, skip_special)) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace banyan
