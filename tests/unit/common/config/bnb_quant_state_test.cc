#include "common/config/bnb_quant_state.h"

#include <gtest/gtest.h>

#include <string>

#include "common/base/strings.h"

namespace banyan {
namespace {

// Checkpoint spec 4.4, case B.
constexpr char kExample[] =
    R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64], )"
    R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.0458984375})";

std::string Replaced(std::string from, std::string to) {
  std::string text = kExample;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(BnbQuantStateTest, Example) {
  ASSERT_EQ(std::string(kExample).size(), 160u);
  const auto state = ParseBnbQuantState(kExample, "x");
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->quant_type, "nf4");
  EXPECT_EQ(state->block_size, 64);
  EXPECT_EQ(state->dtype, DType::kBF16);
  EXPECT_EQ(state->shape, (Shape{4, 64}));
  EXPECT_TRUE(state->nested);
  EXPECT_EQ(state->nested_block_size, 256);
  EXPECT_EQ(state->nested_offset, 1.0458984375f);
}

TEST(BnbQuantStateTest, WithoutNestedKeys) {
  const auto state = ParseBnbQuantState(
      R"({"quant_type":"fp4","blocksize":128,"dtype":"float16","shape":[5,7]})", "x");
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_FALSE(state->nested);
  EXPECT_EQ(state->dtype, DType::kF16);
  EXPECT_EQ(state->quant_type, "fp4");
}

TEST(BnbQuantStateTest, OffsetIsRoundedToF32) {
  const auto state = ParseBnbQuantState(Replaced("1.0458984375", "0.1"), "x");
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->nested_offset, 0.1f);
}

struct Bad {
  std::string text;
  absl::StatusCode code;
  std::string message;
};

TEST(BnbQuantStateTest, Refuses) {
  constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  const Bad cases[] = {
      {"", kDataLoss, "x: "},
      {"{\"quant_type\": ", kDataLoss, "x: "},
      {"[1]", kDataLoss, "x: not a JSON object"},
      {Replaced("\"nf4\"", "\"nf8\""), kUnimplemented,
       "x: quant_type is \"nf8\", supported: nf4 and fp4"},
      {Replaced("\"nf4\"", "4"), kDataLoss, "x: quant_type is 4"},
      {Replaced("64,", "100,"), kUnimplemented,
       "x: blocksize is 100, supported: 32, 64, 128, 256, 512, 1024, 2048 or 4096"},
      {Replaced("64,", "0,"), kDataLoss, "x: blocksize is 0"},
      {Replaced("64,", "64.5,"), kDataLoss, "x: blocksize is 64.5"},
      {Replaced("64,", "-64,"), kDataLoss, "x: blocksize is -64"},
      {Replaced("\"blocksize\": 64, ", ""), kDataLoss, "x: blocksize is missing"},
      {Replaced("bfloat16", "float8"), kUnimplemented,
       "x: dtype is \"float8\", supported: bfloat16, float16 and float32"},
      {Replaced("[4, 64]", "[4]"), kDataLoss, "x: shape is [4], expected [rows, columns]"},
      {Replaced("[4, 64]", "[4, -64]"), kDataLoss, "x: shape is [4,-64]"},
      {Replaced("[4, 64]", "[4, 9223372036854775807]"), kDataLoss, "x: shape is [4,922"},
      {Replaced("[4, 64]", "\"4x64\""), kDataLoss, "x: shape is \"4x64\""},
      {Replaced(", \"nested_offset\": 1.0458984375", ""), kDataLoss,
       "x: nested_offset is missing, although other nested keys are there"},
      {Replaced("1.0458984375", "1e400"), kDataLoss, "x: "},
      {Replaced("1.0458984375", "1e39"), kDataLoss, "x: nested_offset is 1e+39"},
      {Replaced("1.0458984375", "\"one\""), kDataLoss, "x: nested_offset is \"one\""},
      {Replaced("float32", "float16"), kUnimplemented,
       "x: nested_dtype is \"float16\", supported: float32"},
      {Replaced("256", "257"), kUnimplemented, "x: nested_blocksize is 257"},
      {Replaced("\"shape\"", "\"blocksize\": 64, \"shape\""), kDataLoss,
       "x: key 'blocksize' appears twice"},
      {Replaced("\"shape\"", "\"rotation\": 1, \"shape\""), kUnimplemented,
       "x: unknown key 'rotation'"},
  };
  for (const Bad& bad : cases) {
    const auto state = ParseBnbQuantState(bad.text, "x");
    EXPECT_EQ(state.status().code(), bad.code) << bad.text << ": " << state.status();
    EXPECT_EQ(std::string(ToStd(state.status().message())).substr(0, bad.message.size()),
              bad.message)
        << bad.text;
  }
}

}  // namespace
}  // namespace banyan
