#include "common/io/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <set>
#include <string>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

using test::MakeTensor;
using test::TempDir;
using test::TestCheckpoint;
using ::testing::HasSubstr;

constexpr char kFirst[] = "model-00001-of-00002.safetensors";
constexpr char kSecond[] = "model-00002-of-00002.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

// Two shards; tensors c, a | b.
TestCheckpoint TwoShards() {
  TestCheckpoint made;
  made.texts["config.json"] = R"({"model_type": "qwen3_next"})";
  made.shards.resize(2);
  made.shards[0].file_name = kFirst;
  made.shards[0].tensors = {MakeTensor("c", "BF16", {3}, 6), MakeTensor("a", "F32", {2}, 8)};
  made.shards[1].file_name = kSecond;
  made.shards[1].tensors = {MakeTensor("b", "U8", {5}, 5)};
  return made;
}

absl::Status OpenStatus(const TestCheckpoint& made) {
  const TempDir temp;
  made.Write(temp.path());
  absl::Status status = Checkpoint::Open(temp.path()).status();
  // Messages without the directory's random name.
  std::string message(ToStd(status.message()));
  for (size_t at; (at = message.find(temp.path())) != std::string::npos;) {
    message.replace(at, temp.path().size(), "DIR");
  }
  return {status.code(), message};
}

void ExpectError(const TestCheckpoint& made, absl::StatusCode code, const std::string& message) {
  const absl::Status status = OpenStatus(made);
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_EQ(status.message(), message);
}

TEST(Checkpoint, OpensShardsInNameOrder) {
  const TempDir temp;
  TwoShards().Write(temp.path());
  const auto opened = Checkpoint::Open(temp.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  EXPECT_EQ(checkpoint.directory(), temp.path());
  ASSERT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.files()[0], kFirst);
  ASSERT_EQ(checkpoint.entries().size(), 3u);
  EXPECT_EQ(checkpoint.entries()[0].name, "a");
  EXPECT_EQ(checkpoint.entries()[1].name, "b");
  EXPECT_EQ(checkpoint.entries()[2].name, "c");
  const Checkpoint::Entry* const b = checkpoint.Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(checkpoint.FileOf(*b), kSecond);
  EXPECT_EQ(b->view.dtype, DType::kU8);
  EXPECT_EQ(std::memcmp(b->view.data, "\0\1\2\3\4", 5), 0);
  EXPECT_EQ(checkpoint.Find(""), nullptr);
  EXPECT_EQ(checkpoint.Find("aa"), nullptr);
  EXPECT_EQ(checkpoint.Find("zzz"), nullptr);
  checkpoint.Prefetch(b->view);
  EXPECT_TRUE(checkpoint.CheckFilesUnchanged().ok());
}

TEST(Checkpoint, UnalignedScalarAndEmptyTensorsInASingleFile) {
  const TempDir temp;
  TestCheckpoint made;
  made.texts["config.json"] = "{}";
  made.shards.resize(1);
  made.shards[0].file_name = "model.safetensors";
  made.shards[0].tensors = {MakeTensor("odd", "U8", {3}, 3), MakeTensor("floats", "F32", {2}, 8),
                            MakeTensor("scalar", "F64", {}, 8), MakeTensor("none", "F32", {0}, 0)};
  made.Write(temp.path());
  const auto opened = Checkpoint::Open(temp.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  for (const auto& tensor : made.shards[0].tensors) {
    const Checkpoint::Entry* const entry = (*opened)->Find(tensor.name);
    ASSERT_NE(entry, nullptr) << tensor.name;
    ASSERT_EQ(entry->view.size_bytes(), tensor.bytes.size());
    EXPECT_EQ(std::memcmp(entry->view.data, tensor.bytes.data(), tensor.bytes.size()), 0);
    (*opened)->Prefetch(entry->view);
  }
  EXPECT_EQ((*opened)->Find("scalar")->view.shape.ToString(), "[]");
}

TEST(Checkpoint, NothingToOpen) {
  const TempDir temp;
  EXPECT_EQ(Checkpoint::Open(temp.File("absent")).status().code(), absl::StatusCode::kNotFound);
  const auto no_config = Checkpoint::Open(temp.path());
  EXPECT_EQ(no_config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(no_config.status().message(), HasSubstr("config.json: open: No such file"));

  TestCheckpoint made = TwoShards();
  made.shards.clear();
  made.index_json = "";
  ExpectError(made, absl::StatusCode::kNotFound,
              "DIR: no weights: neither model.safetensors nor model.safetensors.index.json");
  made = TwoShards();
  made.index_json = "";
  ExpectError(
      made, absl::StatusCode::kNotFound,
      fmt::format("DIR: no {}, although shard file(s) are there: {}, {}", kIndex, kFirst, kSecond));
}

TEST(Checkpoint, ListedShardAbsentEmptyOrTruncated) {
  TestCheckpoint made = TwoShards();
  made.index_json = made.MakeIndexJson();
  made.shards.pop_back();
  ExpectError(made, absl::StatusCode::kNotFound,
              fmt::format("DIR/{}: listed in {} but absent", kSecond, kIndex));
  made = TwoShards();
  made.shards[1].truncate_to_bytes = 0;
  ExpectError(
      made, absl::StatusCode::kDataLoss,
      fmt::format("DIR/{}: 0 bytes, too short for a safetensors file (at least 8)", kSecond));
  made = TwoShards();
  made.shards[1].truncate_to_bytes = made.shards[1].ToBytes().size() - 2;
  ExpectError(made, absl::StatusCode::kDataLoss,
              fmt::format("DIR/{}: tensor 'b': data_offsets [0, 5] end outside the data area of 3 "
                          "bytes; the file is truncated or its header lies",
                          kSecond));
}

TEST(Checkpoint, TensorInTwoShards) {
  TestCheckpoint made = TwoShards();
  made.shards[1].tensors.push_back(made.shards[0].tensors[1]);
  ExpectError(made, absl::StatusCode::kDataLoss,
              fmt::format("DIR: tensor 'a' is in two shards: {} and {}", kFirst, kSecond));
}

TEST(Checkpoint, IndexAgainstHeaders) {
  TestCheckpoint made = TwoShards();
  const std::string index_path = fmt::format("DIR/{}", kIndex);
  const auto index = [](const std::string& a, const std::string& b, const std::string& more) {
    return fmt::format(R"({{"weight_map":{{"a":"{}","b":"{}"{}}}}})", a, b, more);
  };
  const std::string c = fmt::format(R"(,"c":"{}")", kFirst);
  made.index_json = index(kSecond, kSecond, c);
  ExpectError(
      made, absl::StatusCode::kDataLoss,
      fmt::format("{}: lists tensor 'a' in {}, but it is in {}", index_path, kSecond, kFirst));
  made.index_json = index(kFirst, kSecond, "");
  ExpectError(made, absl::StatusCode::kDataLoss,
              fmt::format("{}: does not list tensor 'c', which is in {}", index_path, kFirst));
  made.index_json = index(kFirst, kSecond, c + fmt::format(R"(,"d":"{}")", kSecond));
  ExpectError(made, absl::StatusCode::kDataLoss,
              fmt::format("{}: lists tensor 'd' in {}, but no shard has it", index_path, kSecond));
  made.index_json = index(kFirst, kSecond, c + fmt::format(R"(,"bb":"{}")", kSecond));
  ExpectError(made, absl::StatusCode::kDataLoss,
              fmt::format("{}: lists tensor 'bb' in {}, but no shard has it", index_path, kSecond));
  made.index_json = index(kFirst, "../" + std::string(kSecond), c);
  EXPECT_THAT(OpenStatus(made).message(), HasSubstr("expected a *.safetensors file of the same"));
  made.index_json = "{";
  EXPECT_THAT(OpenStatus(made).message(), HasSubstr(index_path + ": parse error"));
}

TEST(Checkpoint, StrayShardsAndAmbiguousWeights) {
  const TempDir temp;
  TestCheckpoint made = TwoShards();
  made.Write(temp.path());
  test::WriteFile(temp.File("golden.safetensors"), "not ours");
  EXPECT_TRUE(Checkpoint::Open(temp.path()).ok());
  test::WriteFile(temp.File("model-00003-of-00003.safetensors"), "left behind");
  EXPECT_EQ(Checkpoint::Open(temp.path()).status().message(),
            fmt::format("{}/{}: does not list 1 shard file(s) of its directory: "
                        "model-00003-of-00003.safetensors",
                        temp.path(), kIndex));
  std::filesystem::remove(temp.File("model-00003-of-00003.safetensors"));
  test::WriteFile(temp.File("model.safetensors"), made.shards[0].ToBytes());
  EXPECT_THAT(Checkpoint::Open(temp.path()).status().message(),
              HasSubstr("does not list model.safetensors, which is there too: ambiguous weights"));
  std::filesystem::remove(temp.File(kIndex));
  EXPECT_THAT(Checkpoint::Open(temp.path()).status().message(), HasSubstr("ambiguous weights"));
}

TEST(Checkpoint, FingerprintFollowsEveryHeaderAndNothingElse) {
  const auto fingerprint = [](const TestCheckpoint& made) {
    const TempDir temp;
    made.Write(temp.path());
    const auto opened = Checkpoint::Open(temp.path());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? (*opened)->fingerprint() : std::string();
  };
  const std::string original = fingerprint(TwoShards());
  EXPECT_EQ(original.size(), 32u);
  EXPECT_EQ(original.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(fingerprint(TwoShards()), original) << "another directory, same content";

  std::set<std::string> seen = {original};
  TestCheckpoint made = TwoShards();
  made.texts["config.json"] += " ";
  EXPECT_TRUE(seen.insert(fingerprint(made)).second) << "config.json";
  made = TwoShards();
  made.shards[0].tensors[0].name = "cc";
  EXPECT_TRUE(seen.insert(fingerprint(made)).second) << "name";
  made = TwoShards();
  made.shards[0].tensors[0].dtype = "F16";
  EXPECT_TRUE(seen.insert(fingerprint(made)).second) << "dtype";
  made = TwoShards();
  made.shards[1].header_padding = 1;
  EXPECT_TRUE(seen.insert(fingerprint(made)).second) << "padding";
  made = TwoShards();
  made.shards[0].file_name = "model-00000-of-00002.safetensors";
  EXPECT_TRUE(seen.insert(fingerprint(made)).second) << "file name";
  made = TwoShards();
  std::swap(made.shards[0].tensors, made.shards[1].tensors);
  EXPECT_TRUE(seen.insert(fingerprint(made)).second) << "shards exchanged";
}

TEST(Checkpoint, SeesThatAShardShrankWhileOpen) {
  const TempDir temp;
  TwoShards().Write(temp.path());
  const auto opened = Checkpoint::Open(temp.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  ASSERT_EQ(::truncate(temp.File(kSecond).c_str(), 3), 0);
  const absl::Status status = (*opened)->CheckFilesUnchanged();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr(fmt::format("{}: has 3 bytes now", kSecond)));
}

}  // namespace
}  // namespace banyan
