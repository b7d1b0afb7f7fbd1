#include "common/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"

namespace banyan {
namespace {

using test::MakeTensor;
using test::TestShard;
using ::testing::HasSubstr;

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), "m.safetensors");
}

std::string WithHeader(const std::string& json, size_t data_bytes) {
  TestShard shard;
  shard.header_json = json;
  shard.trailing.resize(data_bytes);
  return shard.ToBytes();
}

TEST(Safetensors, ReadsNamesTypesShapesAndPlaces) {
  TestShard shard;
  shard.tensors = {MakeTensor("b", "BF16", {2, 3}, 12), MakeTensor("a", "F32", {5}, 20)};
  shard.header_padding = 13;
  const auto header = Parse(shard.ToBytes());
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "b");
  EXPECT_EQ(header->tensors[0].dtype, DType::kBF16);
  EXPECT_EQ(header->tensors[0].shape, (Shape{2, 3}));
  EXPECT_EQ(header->tensors[0].begin, 0u);
  EXPECT_EQ(header->tensors[0].end, 12u);
  EXPECT_EQ(header->tensors[1].name, "a");
  EXPECT_EQ(header->tensors[1].begin, 12u);
  EXPECT_EQ(header->data_offset + 32, shard.ToBytes().size());
}

TEST(Safetensors, ScalarsAndEmptyTensors) {
  TestShard shard;
  shard.tensors = {MakeTensor("scalar", "F32", {}, 4), MakeTensor("none", "I64", {0, 7}, 0),
                   MakeTensor("odd", "U8", {3}, 3), MakeTensor("last", "F32", {4, 0}, 0)};
  const auto header = Parse(shard.ToBytes());
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 4u);
  EXPECT_EQ(header->tensors[0].shape.rank(), 0);
  EXPECT_EQ(header->tensors[0].shape.num_elements(), 1);
  EXPECT_EQ(header->tensors[1].shape.num_elements(), 0);
  EXPECT_EQ(header->tensors[3].begin, header->tensors[3].end);
}

TEST(Safetensors, EveryDType) {
  TestShard shard;
  for (const DTypeInfo& info : kDTypes) {
    shard.tensors.push_back(
        MakeTensor(std::string(info.name), std::string(info.name), {3}, 3 * info.size_bytes));
  }
  const auto header = Parse(shard.ToBytes());
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors.size(), std::size(kDTypes));
  for (const SafetensorsTensor& tensor : header->tensors) {
    EXPECT_EQ(DTypeName(tensor.dtype), tensor.name);
  }
}

TEST(Safetensors, TensorsInAnyOrderOfNames) {
  // Header order is not data order.
  const auto header = Parse(WithHeader(R"({"b":{"shape":[8],"data_offsets":[8,16],"dtype":"U8"},)"
                                       R"("a":{"dtype":"U8","shape":[2,4],"data_offsets":[0,8]}})",
                                       16));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors[0].name, "a");
}

TEST(Safetensors, EmptyHeaderOfAnEmptyFile) {
  const auto header = Parse(WithHeader("{}", 0));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_TRUE(header->tensors.empty());
}

TEST(Safetensors, LengthLies) {
  EXPECT_EQ(Parse("").status().message(),
            "m.safetensors: 0 bytes, too short for a safetensors file (at least 8)");
  EXPECT_EQ(Parse("1234567").status().message(),
            "m.safetensors: 7 bytes, too short for a safetensors file (at least 8)");
  TestShard shard;
  shard.tensors = {MakeTensor("a", "U8", {4}, 4)};
  shard.header_length = 100'000'001;
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: header length 100000001, expected at most 100000000");
  shard.header_length = UINT64_MAX;
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: header length 18446744073709551615, expected at most 100000000");
  shard.header_length = 4000;
  const size_t follow = shard.ToBytes().size() - 8;
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            fmt::format("m.safetensors: header length 4000, but only {} bytes follow it", follow));
  shard.header_length = follow - 4 - 1;  // cuts the closing brace off
  EXPECT_THAT(Parse(shard.ToBytes()).status().message(),
              HasSubstr("m.safetensors: header: parse error at line 1"));
  shard.header_length = 0;
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: the header begins with '', expected '{'");
}

struct BadHeader {
  const char* what;
  std::string json;
  size_t data_bytes;
  std::string message;  // after "m.safetensors: "
  absl::StatusCode code = absl::StatusCode::kDataLoss;
};

std::string One(const std::string& body) { return R"({"x.weight":{)" + body + "}}"; }

TEST(Safetensors, HeadersThatContradictThemselves) {
  const std::string offsets16 = R"("data_offsets":[0,16])";
  const BadHeader cases[] = {
      {"shape against offsets", One(R"("dtype":"BF16","shape":[2,3],)" + offsets16), 16,
       "tensor 'x.weight': data_offsets [0, 16] hold 16 bytes, expected 12 for BF16 [2, 3]"},
      {"scalar", One(R"("dtype":"F32","shape":[],)" + offsets16), 16,
       "tensor 'x.weight': data_offsets [0, 16] hold 16 bytes, expected 4 for F32 []"},
      {"unknown dtype", One(R"("dtype":"F4","shape":[16],)" + offsets16), 16,
       "tensor 'x.weight': dtype 'F4' is not supported", absl::StatusCode::kUnimplemented},
      {"outside", One(R"("dtype":"U8","shape":[16],)" + offsets16), 15,
       "tensor 'x.weight': data_offsets [0, 16] end outside the data area of 15 bytes; the file is "
       "truncated or its header lies"},
      {"bytes left over", One(R"("dtype":"U8","shape":[16],)" + offsets16), 17,
       "the data area has 17 bytes, but the header describes 16"},
      {"backwards", One(R"("dtype":"U8","shape":[4],"data_offsets":[8,4])"), 16,
       "tensor 'x.weight': data_offsets [8, 4] run backwards"},
      {"hole at the start", One(R"("dtype":"U8","shape":[4],"data_offsets":[12,16])"), 16,
       "tensor 'x.weight': data_offsets [12, 16] leave a hole of 12 bytes before it"},
      {"elements overflow",
       One(R"("dtype":"U8","shape":[4611686018427387904,4,0],"data_offsets":[0,0])"), 0,
       "tensor 'x.weight': U8 [4611686018427387904, 4, 0] has more than 2^63 bytes"},
      {"bytes overflow", One(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])"),
       0, "tensor 'x.weight': F64 [2305843009213693952] has more than 2^63 bytes"},
      {"offset near 2^64",
       One(R"("dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615])"),
       16,
       "tensor 'x.weight': data_offsets [18446744073709551614, 18446744073709551615] end outside "
       "the data area of 16 bytes; the file is truncated or its header lies"},
      {"dimension above int64", One(R"("dtype":"U8","shape":[9223372036854775808],)" + offsets16),
       16, "tensor 'x.weight': shape has 9223372036854775808, expected an integer below 2^63"},
      {"dimension above uint64", One(R"("dtype":"U8","shape":[18446744073709551616],)" + offsets16),
       16, "tensor 'x.weight': shape has 18446744073709551616, expected an integer below 2^63"},
      {"negative dimension", One(R"("dtype":"U8","shape":[-16],)" + offsets16), 16,
       "tensor 'x.weight': shape has the negative number -16"},
      {"fraction", One(R"("dtype":"U8","shape":[16.0],)" + offsets16), 16,
       "tensor 'x.weight': shape has 16.0, expected an integer below 2^63"},
      {"text in shape", One(R"("dtype":"U8","shape":["16"],)" + offsets16), 16,
       "tensor 'x.weight': shape is or holds a string, expected non-negative integers"},
      {"nested shape", One(R"("dtype":"U8","shape":[[16]],)" + offsets16), 16,
       "tensor 'x.weight': shape is or holds an array, expected non-negative integers"},
      {"too many dimensions",
       One(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,16],)" + offsets16), 16,
       "tensor 'x.weight': shape has more than 16 dimensions"},
      {"three offsets", One(R"("dtype":"U8","shape":[16],"data_offsets":[0,8,16])"), 16,
       "tensor 'x.weight': data_offsets has more than two numbers"},
      {"one offset", One(R"("dtype":"U8","shape":[16],"data_offsets":[16])"), 16,
       "tensor 'x.weight': data_offsets has 1 numbers, expected 2"},
      {"offsets as object", One(R"("dtype":"U8","shape":[16],"data_offsets":{"a":1})"), 16,
       "tensor 'x.weight': data_offsets is or holds an object, expected an array of non-negative "
       "integers"},
      {"dtype a number", One(R"("dtype":8,"shape":[16],)" + offsets16), 16,
       "tensor 'x.weight': dtype is or holds a number, expected a string"},
      {"shape null", One(R"("dtype":"U8","shape":null,)" + offsets16), 16,
       "tensor 'x.weight': shape is or holds null, expected an array of non-negative integers"},
      {"no dtype", One(R"("shape":[16],)" + offsets16), 16,
       "tensor 'x.weight': key 'dtype' is missing"},
      {"no shape", One(R"("dtype":"U8",)" + offsets16), 16,
       "tensor 'x.weight': key 'shape' is missing"},
      {"no offsets", One(R"("dtype":"U8","shape":[16])"), 16,
       "tensor 'x.weight': key 'data_offsets' is missing"},
      {"unknown key", One(R"("dtype":"U8","shape":[16],"strides":[1],)" + offsets16), 16,
       "tensor 'x.weight': unknown key 'strides', expected dtype, shape, data_offsets"},
      {"key twice", One(R"("dtype":"U8","dtype":"U8","shape":[16],)" + offsets16), 16,
       "tensor 'x.weight': key 'dtype' appears twice"},
      {"empty name", R"({"":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}})", 16,
       "a tensor has an empty name"},
      {"entry not an object", R"({"x.weight":[1]})", 0,
       "entry 'x.weight' is or holds an array, expected an object"},
      {"metadata not strings", R"({"__metadata__":{"format":1}})", 0,
       "'__metadata__' is or holds a number, expected strings only"},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0,
       "'__metadata__' appears twice"},
      {"not an object", "[]", 0, "the header begins with '[', expected '{'"},
      {"leading space", " {}", 0, "the header begins with ' ', expected '{'"},
      {"zero byte", std::string("{}\0", 3), 0, "the header has a zero byte at 2"},
  };
  for (const BadHeader& bad : cases) {
    const auto header = Parse(WithHeader(bad.json, bad.data_bytes));
    EXPECT_EQ(header.status().code(), bad.code) << bad.what;
    EXPECT_EQ(header.status().message(), "m.safetensors: " + bad.message) << bad.what;
  }
}

TEST(Safetensors, DuplicateOverlapAndHole) {
  TestShard shard;
  shard.tensors = {MakeTensor("a", "U8", {8}, 8), MakeTensor("a", "U8", {8}, 8)};
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: tensor 'a' appears twice in the header");
  shard.tensors[1].name = "b";
  shard.tensors[1].begin = 7;
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: tensor 'b': data_offsets [7, 15] overlap those of 'a' [0, 8]");
  shard.tensors[1].begin = 0;
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: tensor 'b': data_offsets [0, 8] overlap those of 'a' [0, 8]");
  shard.tensors[1].begin = 9;
  shard.trailing = "x";
  EXPECT_EQ(Parse(shard.ToBytes()).status().message(),
            "m.safetensors: tensor 'b': data_offsets [9, 17] leave a hole of 1 bytes before it");
}

TEST(Safetensors, MalformedJsonAndNamesAreNotEchoedRaw) {
  const auto bad_utf8 = Parse(
      WithHeader("{\"\xff\x01\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0));
  EXPECT_EQ(bad_utf8.status().code(), absl::StatusCode::kDataLoss);
  for (char c : bad_utf8.status().message()) EXPECT_TRUE(c >= 0x20 && c < 0x7f);

  const auto long_name = Parse(WithHeader("{\"" + std::string(100'000, 'n') + "\":{}}", 0));
  EXPECT_LT(long_name.status().message().size(), 400u);
  EXPECT_THAT(long_name.status().message(), HasSubstr("(100000 bytes)"));

  EXPECT_THAT(Parse(WithHeader("{} x", 0)).status().message(), HasSubstr("parse error at line 1"));
  // Deeply nested input is refused at once, without recursion.
  EXPECT_THAT(Parse(WithHeader("{\"a\":" + std::string(1'000'000, '['), 0)).status().message(),
              HasSubstr("expected an object"));
}

TEST(Safetensors, EveryTruncationIsAnError) {
  TestShard shard;
  shard.tensors = {MakeTensor("b", "BF16", {2, 3}, 12), MakeTensor("a", "F32", {5}, 20)};
  const std::string whole = shard.ToBytes();
  ASSERT_TRUE(Parse(whole).ok());
  for (size_t n = 0; n < whole.size(); ++n) {
    const auto header = Parse(whole.substr(0, n));
    EXPECT_EQ(header.status().code(), absl::StatusCode::kDataLoss) << n << " " << header.status();
  }
}

TEST(Safetensors, RandomLayoutsAreReadBack) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    TestShard shard;
    const size_t num_tensors = random() % 20;
    for (size_t i = 0; i < num_tensors; ++i) {
      const DTypeInfo& info = kDTypes[random() % std::size(kDTypes)];
      std::vector<int64_t> shape(random() % 4);
      size_t elements = 1;
      for (int64_t& dim : shape) {
        dim = static_cast<int64_t>(random() % 5);
        elements *= static_cast<size_t>(dim);
      }
      shard.tensors.push_back(MakeTensor(fmt::format("t{}", i), std::string(info.name), shape,
                                         elements * info.size_bytes));
    }
    shard.header_padding = random() % 9;
    const std::string file = shard.ToBytes();
    const auto header = Parse(file);
    ASSERT_TRUE(header.ok()) << header.status();
    ASSERT_EQ(header->tensors.size(), shard.tensors.size());
    for (const SafetensorsTensor& tensor : header->tensors) {
      const auto& made = shard.tensors[std::stoul(tensor.name.substr(1))];
      EXPECT_EQ(tensor.shape.dims(), made.shape);
      EXPECT_EQ(DTypeName(tensor.dtype), made.dtype);
      EXPECT_EQ(file.substr(header->data_offset + tensor.begin, tensor.end - tensor.begin),
                made.bytes);
    }
  }
}

}  // namespace
}  // namespace banyan
