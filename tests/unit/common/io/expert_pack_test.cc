#include "common/io/expert_pack.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/base/strings.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan {
namespace {

ExpertPackHeader MakeHeader(PoolFormat format) {
  ExpertPackHeader header;
  header.format = format;
  header.split_by_experts = true;
  header.shard_index = 1;
  header.num_shards = 3;
  header.num_layers = 5;
  header.num_experts = 9;
  header.hidden_size = 96;
  header.moe_intermediate_size = 40;
  header.first_expert = 3;
  header.num_shard_experts = 3;
  header.first_width = 0;
  header.num_shard_width = 40;
  header.fingerprint = "0123456789abcdef0123456789abcdef";
  header.source_stamp = 0x1122334455667788;
  header.moe_layers = {0, 2, 3};
  for (int i = 0; i < 9; ++i) header.checksums.push_back(static_cast<uint64_t>(i) << 60 | 7u);
  return header;
}

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A pack file with random payload and its true checksums.
std::string MakePack(PoolFormat format) {
  ExpertPackHeader header = MakeHeader(format);
  const ExpertPackLayout layout = LayoutOf(header);
  std::string file(static_cast<size_t>(layout.file_bytes), '\0');
  std::mt19937 random(5);
  for (size_t i = static_cast<size_t>(layout.payload_offset); i < file.size(); ++i) {
    file[i] = static_cast<char>(random());
  }
  for (int64_t i = 0; i < header.num_packed_experts(); ++i) {
    header.checksums[static_cast<size_t>(i)] = PackChecksum(Bytes(file).subspan(
        static_cast<size_t>(layout.ExpertOffset(i)), static_cast<size_t>(layout.expert_bytes)));
  }
  const std::vector<std::byte> encoded = EncodeExpertPackHeader(header);
  file.replace(0, encoded.size(), reinterpret_cast<const char*>(encoded.data()), encoded.size());
  return file;
}

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

TEST(ExpertPackTest, HeaderGoesThroughUnchanged) {
  for (const PoolFormat format :
       {PoolFormat::kBF16, PoolFormat::kInt8, PoolFormat::kNF4, PoolFormat::kInt4}) {
    const ExpertPackHeader header = MakeHeader(format);
    const ExpertPackLayout layout = LayoutOf(header);
    const std::vector<std::byte> bytes = EncodeExpertPackHeader(header);
    const auto parsed = ParseExpertPackHeader(bytes, static_cast<uint64_t>(layout.file_bytes), "p");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->format, format);
    EXPECT_TRUE(parsed->split_by_experts);
    EXPECT_EQ(parsed->shard_index, 1);
    EXPECT_EQ(parsed->num_shards, 3);
    EXPECT_EQ(parsed->num_layers, 5);
    EXPECT_EQ(parsed->num_experts, 9);
    EXPECT_EQ(parsed->hidden_size, 96);
    EXPECT_EQ(parsed->moe_intermediate_size, 40);
    EXPECT_EQ(parsed->first_expert, 3);
    EXPECT_EQ(parsed->num_shard_experts, 3);
    EXPECT_EQ(parsed->first_width, 0);
    EXPECT_EQ(parsed->num_shard_width, 40);
    EXPECT_EQ(parsed->fingerprint, header.fingerprint);
    EXPECT_EQ(parsed->source_stamp, header.source_stamp);
    EXPECT_EQ(parsed->moe_layers, header.moe_layers);
    EXPECT_EQ(parsed->checksums, header.checksums);
    EXPECT_EQ(layout.payload_offset % kPackPayloadAlignment, 0);
    EXPECT_EQ(layout.expert_bytes % 64, 0);
  }
}

TEST(ExpertPackTest, MapsExpertsAndNamesADamagedOne) {
  test::TempDir temp;
  std::string file = MakePack(PoolFormat::kInt8);
  test::WriteFile(temp.File("p"), file);
  {
    const auto pack = ExpertPack::Open(temp.File("p"));
    ASSERT_TRUE(pack.ok()) << pack.status();
    for (int64_t i = 0; i < 9; ++i) {
      EXPECT_TRUE(pack->VerifyExpert(i).ok());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(pack->Expert(i).data()) % 64, 0u);
    }
    EXPECT_EQ(pack->ExpertName(4), "layer 2 expert 4");
  }
  const ExpertPackLayout layout = LayoutOf(MakeHeader(PoolFormat::kInt8));
  file[static_cast<size_t>(layout.ExpertOffset(5) - 1)] ^= 0x10;  // the last byte of expert 4
  test::WriteFile(temp.File("p"), file);
  const auto pack = ExpertPack::Open(temp.File("p"));
  ASSERT_TRUE(pack.ok()) << pack.status();
  for (int64_t i = 0; i < 9; ++i) EXPECT_EQ(pack->VerifyExpert(i).ok(), i != 4) << i;
  EXPECT_NE(Message(pack->VerifyExpert(4)).find("layer 2 expert 4 is damaged"), std::string::npos);
}

// Every bit of every header byte, and every shorter length of the header.
TEST(ExpertPackTest, NoDamagedHeaderPasses) {
  const ExpertPackHeader header = MakeHeader(PoolFormat::kNF4);
  const auto file_bytes = static_cast<uint64_t>(LayoutOf(header).file_bytes);
  const std::vector<std::byte> sound = EncodeExpertPackHeader(header);
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> bytes = sound;
      bytes[i] ^= static_cast<std::byte>(1 << bit);
      const auto parsed = ParseExpertPackHeader(bytes, file_bytes, "p");
      ASSERT_FALSE(parsed.ok()) << "byte " << i << " bit " << bit;
      EXPECT_EQ(Message(parsed.status()).substr(0, 3), "p: ");
    }
  }
  for (size_t size = 0; size < sound.size(); ++size) {
    EXPECT_FALSE(ParseExpertPackHeader(std::span(sound).first(size), file_bytes, "p").ok());
    EXPECT_FALSE(ParseExpertPackHeader(std::span(sound).first(size), size, "p").ok());
  }
}

TEST(ExpertPackTest, SaysWhatIsWrong) {
  const auto told = [](const std::function<void(ExpertPackHeader&)>& change,
                       int64_t file_bytes_less = 0) {
    ExpertPackHeader header = MakeHeader(PoolFormat::kInt4);
    change(header);
    header.checksums.resize(static_cast<size_t>(header.num_packed_experts()));
    const std::vector<std::byte> bytes = EncodeExpertPackHeader(header);
    const auto parsed = ParseExpertPackHeader(
        bytes, static_cast<uint64_t>(LayoutOf(header).file_bytes - file_bytes_less), "p");
    return parsed.ok() ? std::string() : Message(parsed.status());
  };
  EXPECT_EQ(told([](auto&) {}), "");
  EXPECT_EQ(told([](auto& h) { h.shard_index = 3; }), "p: header: shard_index 3, expected 0 to 2");
  EXPECT_EQ(told([](auto& h) { h.first_expert = 7; }),
            "p: header: num_shard_experts 3, expected 1 to 2");
  EXPECT_EQ(told([](auto& h) { h.num_shard_width = 41; }),
            "p: header: num_shard_width 41, expected 1 to 40");
  EXPECT_EQ(told([](auto& h) {
              h.moe_layers = {0, 3, 3};
            }),
            "p: header: moe layer 3 of place 2, expected 4 to 4");
  EXPECT_EQ(told([](auto& h) { h.moe_layers = {5}; }),
            "p: header: moe layer 5 of place 0, expected 0 to 4");
  EXPECT_EQ(told([](auto& h) { h.fingerprint[3] = 'x'; }),
            "p: header: fingerprint '012x456789abcdef0123456789abcdef', expected 32 hex digits");
  EXPECT_NE(told([](auto&) {}, 64).find("it was cut"), std::string::npos);
  EXPECT_NE(told([](auto&) {}, -64).find("the file has"), std::string::npos);

  std::string newer = MakePack(PoolFormat::kInt8);
  newer[8] = 2;
  EXPECT_EQ(Message(ParseExpertPackHeader(Bytes(newer), newer.size(), "p").status()),
            "p: pack version 2, this program reads version 1");
  std::string other = newer;
  other.replace(0, 8, "GGUF\3\0\0\0", 8);
  EXPECT_EQ(Message(ParseExpertPackHeader(Bytes(other), other.size(), "p").status()),
            "p: not a pack: begins with 'GGUF\\x03\\x00\\x00\\x00', expected 'BANYANPK'");
}

TEST(ExpertPackTest, OpenRefusesWhatIsNoPack) {
  test::TempDir temp;
  EXPECT_EQ(ExpertPack::Open(temp.File("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ExpertPack::Open(temp.path()).status().code(), absl::StatusCode::kDataLoss);
  const std::string file = MakePack(PoolFormat::kInt8);
  for (const size_t size : {size_t{0}, size_t{31}, size_t{200}, file.size() - 1}) {
    test::WriteFile(temp.File("p"), file.substr(0, size));
    EXPECT_EQ(ExpertPack::Open(temp.File("p")).status().code(), absl::StatusCode::kDataLoss)
        << size;
  }
}

}  // namespace
}  // namespace banyan
