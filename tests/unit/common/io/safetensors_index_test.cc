#include "common/io/safetensors_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/base/strings.h"

namespace banyan {
namespace {

using ::testing::HasSubstr;

TEST(SafetensorsIndex, SortsFilesAndTensors) {
  const auto index = ParseSafetensorsIndex(
      R"({"metadata":{"total_size":24,"more":[{"weight_map":{"q":1}}]},)"
      R"("weight_map":{"c":"z.safetensors","a":"b.safetensors","b":"z.safetensors"},"extra":null})",
      "i.json");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->files, (std::vector<std::string>{"b.safetensors", "z.safetensors"}));
  ASSERT_EQ(index->tensors.size(), 3u);
  EXPECT_EQ(index->tensors[0].name, "a");
  EXPECT_EQ(index->tensors[0].file_idx, 0);
  EXPECT_EQ(index->tensors[1].name, "b");
  EXPECT_EQ(index->tensors[1].file_idx, 1);
  EXPECT_EQ(index->tensors[2].file_idx, 1);
}

TEST(SafetensorsIndex, FilesOutsideTheDirectoryAreRefused) {
  for (const char* name :
       {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\\\x.safetensors",
        ".safetensors", ".x.safetensors", "x.bin", "", "..", "x\\u0000.safetensors"}) {
    const auto index =
        ParseSafetensorsIndex(fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", name), "i.json");
    EXPECT_EQ(index.status().code(), absl::StatusCode::kDataLoss) << name;
    EXPECT_THAT(index.status().message(), HasSubstr("i.json: tensor 'w' is said to be in '"));
    EXPECT_THAT(index.status().message(),
                HasSubstr("expected a *.safetensors file of the same directory"));
  }
}

TEST(SafetensorsIndex, Malformed) {
  const struct {
    std::string json;
    std::string message;
  } cases[] = {
      {R"({"metadata":{}})", "i.json: key 'weight_map' is missing"},
      {R"({"weight_map":{}})", "i.json: weight_map lists no tensor"},
      {R"({"weight_map":null})", "i.json: weight_map is null, expected an object"},
      {R"({"weight_map":["a"]})", "i.json: weight_map is an array, expected an object"},
      {R"({"weight_map":{"a":1}})",
       "i.json: weight_map: tensor 'a' has a number, expected a file name"},
      {R"({"weight_map":{"a":{"b":"c.safetensors"}}})",
       "i.json: weight_map: tensor 'a' has an object, expected a file name"},
      {R"({"weight_map":{"a":["c.safetensors"]}})",
       "i.json: weight_map: tensor 'a' has an array, expected a file name"},
      {R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})",
       "i.json: weight_map lists tensor 'a' twice"},
      {R"({"weight_map":{"a":"x.safetensors"},"weight_map":{"b":"x.safetensors"}})",
       "i.json: key 'weight_map' appears twice"},
      {R"([{"weight_map":{}}])", "i.json: is an array, expected an object"},
      {R"("text")", "i.json: is a string, expected an object"},
      {std::string("{}\0", 3), "i.json: zero byte at 2"},
  };
  for (const auto& bad : cases) {
    const auto index = ParseSafetensorsIndex(bad.json, "i.json");
    EXPECT_EQ(index.status().code(), absl::StatusCode::kDataLoss) << bad.json;
    EXPECT_EQ(index.status().message(), bad.message);
  }
  EXPECT_THAT(ParseSafetensorsIndex("", "i.json").status().message(),
              HasSubstr("i.json: parse error at line 1, column 1"));
  EXPECT_THAT(ParseSafetensorsIndex(R"({"weight_map":{"a":"x.saf)", "i.json").status().message(),
              HasSubstr("i.json: parse error at line 1"));
}

}  // namespace
}  // namespace banyan
