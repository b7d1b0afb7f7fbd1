#include "services/trunk/experts/lent_pool.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/io/pack_segment.h"
#include "tests/fakes/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::trunk {
namespace {

using testing::HasSubstr;

ExpertPackHeader Header() {
  ExpertPackHeader header;
  header.format = PoolFormat::kInt8;
  header.num_layers = 5;
  header.num_experts = 3;
  header.hidden_size = 96;
  header.moe_intermediate_size = 64;
  header.num_shard_experts = 3;
  header.num_shard_width = 64;
  header.fingerprint = "0123456789abcdef0123456789abcdef";
  header.moe_layers = {0, 2, 3};
  return header;
}

ExpectedModel Model() {
  const ExpertPackHeader header = Header();
  ExpectedModel model;
  model.fingerprint = header.fingerprint;
  model.num_layers = header.num_layers;
  model.moe_layers = header.moe_layers;
  model.num_experts = header.num_experts;
  model.hidden_size = header.hidden_size;
  model.moe_intermediate_size = header.moe_intermediate_size;
  return model;
}

// A pack file with random experts.
std::string Pack(ExpertPackHeader header) {
  header.checksums.resize(static_cast<size_t>(header.num_packed_experts()));
  const ExpertPackLayout layout = LayoutOf(header);
  const std::vector<std::byte> encoded = EncodeExpertPackHeader(header);
  std::string file(static_cast<size_t>(layout.file_bytes), '\0');
  std::memcpy(file.data(), encoded.data(), encoded.size());
  std::mt19937 random(7);
  for (auto i = static_cast<size_t>(layout.payload_offset); i < file.size(); ++i) {
    file[i] = static_cast<char>(random());
  }
  return file;
}

std::string Segment(const std::string& pack) {
  const auto bytes = static_cast<int64_t>(pack.size());
  std::string out = pack;
  out.resize(static_cast<size_t>(PackSegmentBytes(bytes)));
  const PackSegmentTrailer trailer = MakePackSegmentTrailer(bytes, {});
  std::memcpy(out.data() + out.size() - kPackSegmentPageBytes, &trailer, sizeof(trailer));
  return out;
}

class LentPoolTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<LentPool>> Open(const std::string& bytes,
                                                 const ExpectedModel& model = Model(),
                                                 int32_t shard = 0, int32_t num_shards = 1) {
    test::WriteFile(temp_.File("p"), bytes);
    return LentPool::Open(FileDescriptor(open(temp_.File("p").c_str(), O_RDONLY | O_CLOEXEC)),
                          model, shard, num_shards);
  }
  std::string Error(const std::string& bytes, absl::StatusCode code) {
    const absl::Status status = Open(bytes).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }
  std::string ErrorOf(const std::function<void(ExpertPackHeader&)>& change) {
    ExpertPackHeader header = Header();
    change(header);
    return Error(Pack(header), absl::StatusCode::kFailedPrecondition);
  }

  const test::TempDir temp_;
};

TEST_F(LentPoolTest, EveryExpertLiesWhereThePackHasIt) {
  const std::string pack = Pack(Header());
  const ExpertPackLayout layout = LayoutOf(Header());
  const auto expert_bytes = static_cast<size_t>(layout.expert_bytes);
  for (const std::string& bytes : {pack, Segment(pack)}) {
    const auto pool = Open(bytes);
    ASSERT_TRUE(pool.ok()) << pool.status();
    EXPECT_EQ((*pool)->header().format, PoolFormat::kInt8);
    EXPECT_EQ((*pool)->layout().file_bytes, static_cast<int64_t>(pack.size()));
    for (int64_t layer = 0; layer < 3; ++layer) {
      for (int32_t expert = 0; expert < 3; ++expert) {
        const auto at = static_cast<size_t>(layout.ExpertOffset(layer * 3 + expert));
        EXPECT_EQ(std::memcmp((*pool)->Expert(layer, expert), pack.data() + at, expert_bytes), 0)
            << layer << " " << expert;
      }
    }
    const std::span<const std::byte> payload = (*pool)->Payload();
    EXPECT_EQ(payload.data(), (*pool)->Expert(0, 0));
    EXPECT_EQ(payload.size(), 9 * expert_bytes);
  }
}

TEST_F(LentPoolTest, TheFileOutlivesItsName) {
  const auto pool = Open(Pack(Header()));
  ASSERT_TRUE(pool.ok()) << pool.status();
  const std::byte first = *(*pool)->Expert(0, 0);
  test::WriteFile(temp_.File("new"), "another");
  std::filesystem::rename(temp_.File("new"), temp_.File("p"));
  EXPECT_EQ(*(*pool)->Expert(0, 0), first);
}

TEST_F(LentPoolTest, AnotherModelIsRefused) {
  EXPECT_EQ(ErrorOf([](auto& h) { h.fingerprint[0] = 'f'; }),
            "lent pool: of the model with fingerprint f123456789abcdef0123456789abcdef, expected "
            "0123456789abcdef0123456789abcdef");
  EXPECT_EQ(ErrorOf([](auto& h) { h.num_layers = 6; }), "lent pool: num_layers 6, expected 5");
  EXPECT_EQ(ErrorOf([](auto& h) { h.num_experts = h.num_shard_experts = 4; }),
            "lent pool: num_experts 4, expected 3");
  EXPECT_EQ(ErrorOf([](auto& h) { h.hidden_size = 128; }),
            "lent pool: hidden_size 128, expected 96");
  EXPECT_EQ(ErrorOf([](auto& h) { h.moe_intermediate_size = h.num_shard_width = 96; }),
            "lent pool: moe_intermediate_size 96, expected 64");
  EXPECT_EQ(ErrorOf([](auto& h) {
              h.moe_layers = {0, 2, 4};
            }),
            "lent pool: routed experts in layers 0 2 4, expected 0 2 3");
}

TEST_F(LentPoolTest, AnotherShardIsRefused) {
  EXPECT_EQ(ErrorOf([](auto& h) {
              h.num_shards = 2;
              h.num_shard_width = 32;
            }),
            "lent pool: shard 0 of 2, expected 0 of 1");
  EXPECT_EQ(ErrorOf([](auto& h) {
              h.split_by_experts = true;
              h.num_shards = 2;
              h.shard_index = 1;
              h.first_expert = 1;
              h.num_shard_experts = 2;
            }),
            "lent pool: shard 1 of 2, expected 0 of 1");
}

TEST_F(LentPoolTest, AShardByExpertsHasItsOwn) {
  ExpertPackHeader header = Header();
  header.split_by_experts = true;
  header.num_shards = 2;
  header.shard_index = 1;
  header.first_expert = 1;
  header.num_shard_experts = 2;
  const std::string pack = Pack(header);
  const ExpertPackLayout layout = LayoutOf(header);
  const auto pool = Open(pack, Model(), 1, 2);
  ASSERT_TRUE(pool.ok()) << pool.status();
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (int32_t expert = 1; expert < 3; ++expert) {
      const auto at = static_cast<size_t>(layout.ExpertOffset(layer * 2 + expert - 1));
      EXPECT_EQ(std::memcmp((*pool)->Expert(layer, expert), pack.data() + at,
                            static_cast<size_t>(layout.expert_bytes)),
                0)
          << layer << " " << expert;
    }
  }
}

TEST_F(LentPoolTest, WhatIsNoWholePackIsRefused) {
  constexpr absl::StatusCode kDataLoss = absl::StatusCode::kDataLoss;
  const std::string pack = Pack(Header());
  const std::string segment = Segment(pack);
  EXPECT_THAT(Error(pack.substr(0, pack.size() - 1), kDataLoss), HasSubstr("it was cut"));
  EXPECT_THAT(Error(pack.substr(0, 4096), kDataLoss), HasSubstr("lent pool: "));
  EXPECT_THAT(Error(pack.substr(0, 20), kDataLoss), HasSubstr("too short"));
  EXPECT_THAT(Error("", kDataLoss), HasSubstr("too short"));
  EXPECT_THAT(Error(pack + "x", kDataLoss), HasSubstr("the file has"));
  EXPECT_THAT(Error(std::string(pack.size(), 'x'), kDataLoss), HasSubstr("not a pack"));
  // A segment that was not filled to its end, and one of another pack.
  EXPECT_THAT(Error(pack + std::string(segment.size() - pack.size(), '\0'), kDataLoss),
              HasSubstr("the file has"));
  EXPECT_THAT(Error(Segment(pack.substr(0, pack.size() - 8192)), kDataLoss),
              HasSubstr("it was cut"));
  std::string damaged = segment;
  damaged[90] ^= 1;
  EXPECT_THAT(Error(damaged, kDataLoss), HasSubstr("damaged"));
}

TEST_F(LentPoolTest, OtherFilesAreRefused) {
  const auto error = [](FileDescriptor file) {
    return std::string(LentPool::Open(std::move(file), Model(), 0, 1).status().message());
  };
  EXPECT_EQ(error(FileDescriptor(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))),
            "lent pool: not a regular file");
  EXPECT_EQ(error(FileDescriptor(open("/dev/zero", O_RDONLY | O_CLOEXEC))),
            "lent pool: not a regular file");
  EXPECT_EQ(error(FileDescriptor()), "lent pool: fstat: Bad file descriptor");
}

}  // namespace
}  // namespace banyan::trunk
