#include "services/trunk/experts/grpc_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/quant/bf16.h"
#include "tests/fakes/expert_host.h"
#include "tests/fakes/temp_dir.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::trunk {
namespace {

using testing::HasSubstr;
using namespace testing_experts;  // NOLINT: names of the small model

constexpr absl::Duration kPatience = absl::Seconds(30);

// One replica for each shard, all in this process.
class LocalCluster {
 public:
  LocalCluster(bool by_experts, int32_t num_shards, bool unix_socket, bool aside = false) {
    for (int32_t s = 0; s < num_shards; ++s) {
      executors_.push_back(std::make_unique<ScalarExecutor>(Geometry(by_experts, s, num_shards)));
      ExpertHost::Options options;
      if (aside) options.forward.aside_bytes = 1;
      if (unix_socket) options.listen = "unix:" + temp_.File("e" + std::to_string(s));
      hosts_.push_back(std::make_unique<ExpertHost>(
          options,
          MakeDescription(executors_.back()->geometry(),
                          by_experts ? expert::v1::EXPERTS : expert::v1::WIDTH, s, num_shards,
                          kFingerprint),
          executors_.back().get()));
      config_.shards.push_back({{hosts_.back()->address()}});
    }
  }
  const ClusterConfig& config() const { return config_; }
  ExpertHost& host(int32_t shard) { return *hosts_[static_cast<size_t>(shard)]; }

 private:
  test::TempDir temp_;
  std::vector<std::unique_ptr<ScalarExecutor>> executors_;
  std::vector<std::unique_ptr<ExpertHost>> hosts_;
  ClusterConfig config_;
};

struct Trunk {
  explicit Trunk(const ClusterConfig& config, const GrpcTransport::Options& options = {},
                 const ExpectedModel& model = Model(), bool shared_memory = true) {
    ExpertDirectory::Options directory_options;
    directory_options.shared_memory = shared_memory;
    directory_options.cluster = config;
    directory_options.model = model;
    auto created = ExpertDirectory::Create(directory_options, &metrics);
    directory = *std::move(created);
    transport = std::make_unique<GrpcTransport>(options, directory.get(), &metrics);
  }

  // `dtype` of the activations; kBF16: rounded. `sent`: where they lie already.
  absl::StatusOr<std::vector<float>> Call(const Rows& rows, int32_t layer,
                                          DType dtype = DType::kF32, const void* sent = nullptr) {
    std::vector<BF16> rounded;
    for (const float value : rows.activations) rounded.push_back(ToBF16(value));
    if (sent == nullptr && dtype == DType::kF32) sent = rows.activations.data();
    if (sent == nullptr) sent = rounded.data();
    absl::Status status = transport->Dispatch({.step_id = 1,
                                               .layer = layer,
                                               .num_rows = rows.num_rows,
                                               .top_k = kTopK,
                                               .activations = sent,
                                               .activations_dtype = dtype,
                                               .expert_ids = rows.ids.data(),
                                               .weights = rows.weights.data()});
    std::vector<float> out(rows.activations.size(), NAN);
    if (status.ok()) status = transport->Combine(out.data());
    if (!status.ok()) return status;
    return out;
  }

  double SharedMemoryCalls(int32_t shard) {
    return metrics
        .HotCounter("banyan_trunk_expert_shm_calls_total",
                    "Expert calls sent through shared memory.", {{"shard", std::to_string(shard)}})
        .Value();
  }

  MetricsRegistry metrics;
  std::unique_ptr<ExpertDirectory> directory;
  std::unique_ptr<GrpcTransport> transport;
};

enum class Way { kTcp, kUnix, kShared };

const char* WayName(Way way) {
  return way == Way::kTcp ? "Tcp" : way == Way::kUnix ? "Unix" : "Shared";
}

struct Case {
  bool by_experts;
  Way way;
  int32_t num_shards;
};

class EveryClusterTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& param = GetParam();
    cluster_.emplace(param.by_experts, param.num_shards, param.way != Way::kTcp);
    trunk_.emplace(cluster_->config(), GrpcTransport::Options{}, Model(),
                   param.way == Way::kShared);
    ASSERT_EQ(trunk_->transport->WaitReady(absl::Now() + kPatience), absl::OkStatus());
  }
  void TearDown() override {
    for (int32_t s = 0; s < GetParam().num_shards; ++s) {
      EXPECT_EQ(trunk_->SharedMemoryCalls(s) > 0, GetParam().way == Way::kShared);
    }
  }

  std::optional<LocalCluster> cluster_;
  std::optional<Trunk> trunk_;
};

TEST_P(EveryClusterTest, DeliversTheSumInShardOrderBitForBit) {
  const Case& param = GetParam();
  Trunk& trunk = *trunk_;
  EXPECT_EQ(trunk.transport->Ready(), absl::OkStatus());
  for (const int32_t num_rows : {1, 2, 5, 17, kRowLimit}) {
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const Rows rows = RandomRows(static_cast<uint32_t>(num_rows), num_rows);
      const auto sums = trunk.Call(rows, layer);
      ASSERT_TRUE(sums.ok()) << sums.status();
      EXPECT_EQ(*sums, ExpectedSums(rows, layer, param.by_experts, param.num_shards));
      // The same to f32 rounding as one host with everything: a sum of up to num_shards * top_k
      // terms, each at most the largest sum of absolute values seen.
      const std::vector<float> whole = ExpectedSums(rows, layer, false, 1);
      for (size_t i = 0; i < whole.size(); ++i) {
        EXPECT_NEAR((*sums)[i], whole[i],
                    32 * std::numeric_limits<float>::epsilon() * param.num_shards);
      }
    }
  }
}

// Rows that bf16 holds give the same bits whichever way they travel; others those of their
// rounding.
TEST_P(EveryClusterTest, SendsRowsInBf16AsTheyAre) {
  const Case& param = GetParam();
  Trunk& trunk = *trunk_;
  for (const int32_t num_rows : {1, 5, kRowLimit}) {
    const Rows rows = RandomRows(static_cast<uint32_t>(num_rows), num_rows);
    Rows rounded = rows;
    for (float& value : rounded.activations) value = ToFloat(ToBF16(value));
    const auto sums = trunk.Call(rows, 1, DType::kBF16);
    ASSERT_TRUE(sums.ok()) << sums.status();
    EXPECT_EQ(*sums, ExpectedSums(rounded, 1, param.by_experts, param.num_shards));
    EXPECT_NE(*sums, ExpectedSums(rows, 1, param.by_experts, param.num_shards));
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, EveryClusterTest,
                         testing::Values(Case{false, Way::kTcp, 1}, Case{false, Way::kUnix, 2},
                                         Case{false, Way::kTcp, 3}, Case{false, Way::kUnix, 8},
                                         Case{true, Way::kUnix, 1}, Case{true, Way::kTcp, 2},
                                         Case{true, Way::kUnix, 3}, Case{true, Way::kUnix, 5},
                                         Case{true, Way::kTcp, 8}, Case{false, Way::kShared, 1},
                                         Case{true, Way::kShared, 2}, Case{false, Way::kShared, 4},
                                         Case{true, Way::kShared, 8}),
                         [](const auto& test) {
                           return std::string(test.param.by_experts ? "Experts" : "Width") +
                                  WayName(test.param.way) + std::to_string(test.param.num_shards);
                         });

TEST(GrpcTransportTest, ARowsBitsDoNotDependOnTheRowsBesideIt) {
  for (const auto& [dtype, reply_f32] :
       {std::pair(DType::kF32, true), {DType::kBF16, true}, {DType::kBF16, false}}) {
    LocalCluster cluster(true, 2, true);
    Trunk trunk(cluster.config(), {.reply_f32 = reply_f32});
    ASSERT_TRUE(trunk.transport->WaitReady(absl::Now() + kPatience).ok());
    const Rows rows = RandomRows(11, kRowLimit);
    const auto together = trunk.Call(rows, 1, dtype);
    ASSERT_TRUE(together.ok()) << together.status();
    for (int32_t r = 0; r < rows.num_rows; ++r) {
      Rows one{.num_rows = 1, .activations = {}, .ids = {}, .weights = {}};
      one.activations.assign(rows.activations.begin() + r * kHidden,
                             rows.activations.begin() + (r + 1) * kHidden);
      one.ids.assign(rows.ids.begin() + r * kTopK, rows.ids.begin() + (r + 1) * kTopK);
      one.weights.assign(rows.weights.begin() + r * kTopK, rows.weights.begin() + (r + 1) * kTopK);
      const auto alone = trunk.Call(one, 1, dtype);
      ASSERT_TRUE(alone.ok()) << alone.status();
      const std::vector<float> expected(together->begin() + r * kHidden,
                                        together->begin() + (r + 1) * kHidden);
      EXPECT_EQ(*alone, expected) << r;
    }
  }
}

// Frames, and shared memory.
class WaysTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(All, WaysTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "SharedMemory" : "Frames"; });

// Memory lent for rows is sent from, block after block, while rows from elsewhere go as ever.
TEST_P(WaysTest, SendFromMemoryThatWasLent) {
  for (const bool by_experts : {false, true}) {
    LocalCluster cluster(by_experts, 2, true);
    Trunk trunk(cluster.config(), {}, Model(), GetParam());
    ASSERT_TRUE(trunk.transport->WaitReady(absl::Now() + kPatience).ok());
    EXPECT_EQ(trunk.transport->TakeRowsMemory(), nullptr);
    constexpr size_t kBlockBytes = sizeof(float) * kRowLimit * kHidden;
    std::vector<std::shared_ptr<std::byte>> blocks;
    for (int i = 0; i < 2; ++i) {
      blocks.emplace_back(new std::byte[kBlockBytes], std::default_delete<std::byte[]>());
    }
    std::set<const void*> known = {blocks[0].get(), blocks[1].get()};
    trunk.transport->LendRowsMemory(std::move(blocks), kBlockBytes);
    for (uint32_t seed = 0; seed < 50; ++seed) {
      const Rows rows = RandomRows(seed, seed % 2 == 0 ? kRowLimit : 3);
      std::byte* const memory = trunk.transport->TakeRowsMemory();
      const size_t bytes = rows.activations.size() * sizeof(float);
      if (memory != nullptr) {
        EXPECT_TRUE(known.count(memory) == 1);
        std::memcpy(memory, rows.activations.data(), bytes);
      }
      const bool elsewhere = memory == nullptr || seed % 5 == 0;
      const auto sums = trunk.Call(rows, 0, DType::kF32, elsewhere ? nullptr : memory);
      ASSERT_TRUE(sums.ok()) << sums.status();
      EXPECT_EQ(*sums, ExpectedSums(rows, 0, by_experts, 2)) << seed;
    }
  }
}

// Two batches under way, answers in their order, whatever their sizes; memory that was lent too,
// and hosts that read the second while they compute the first.
TEST_P(WaysTest, CarryTwoBatchesAtOnce) {
  for (const bool by_experts : {false, true}) {
    LocalCluster cluster(by_experts, 3, true, /*aside=*/by_experts);
    Trunk trunk(cluster.config(), {}, Model(), GetParam());
    ASSERT_TRUE(trunk.transport->WaitReady(absl::Now() + kPatience).ok());
    constexpr size_t kBlockBytes = sizeof(float) * kRowLimit * kHidden;
    std::vector<std::shared_ptr<std::byte>> blocks;
    for (int i = 0; i < 4; ++i) {
      blocks.emplace_back(new std::byte[kBlockBytes], std::default_delete<std::byte[]>());
    }
    trunk.transport->LendRowsMemory(std::move(blocks), kBlockBytes);
    const auto send = [&](const Rows& rows, int32_t layer) {
      const void* from = rows.activations.data();
      if (std::byte* const memory = trunk.transport->TakeRowsMemory(); memory != nullptr) {
        std::memcpy(memory, from, rows.activations.size() * sizeof(float));
        from = memory;
      }
      return trunk.transport->Dispatch({.step_id = 1,
                                        .layer = layer,
                                        .num_rows = rows.num_rows,
                                        .top_k = kTopK,
                                        .activations = from,
                                        .expert_ids = rows.ids.data(),
                                        .weights = rows.weights.data()});
    };
    // As a step's halves go: one is combined and sent again while the other is there.
    std::vector<Rows> sent;
    for (int32_t i = 0; i < 60; ++i) {
      sent.push_back(RandomRows(static_cast<uint32_t>(i), i % 3 == 0 ? kRowLimit : 1 + i % 7));
    }
    ASSERT_EQ(send(sent[0], 0), absl::OkStatus());
    for (size_t i = 0; i < sent.size(); ++i) {
      if (i + 1 < sent.size()) {
        ASSERT_EQ(send(sent[i + 1], static_cast<int32_t>(i + 1) % kLayers), absl::OkStatus());
      }
      std::vector<float> out(sent[i].activations.size(), NAN);
      ASSERT_EQ(trunk.transport->Combine(out.data()), absl::OkStatus());
      EXPECT_EQ(out, ExpectedSums(sent[i], static_cast<int32_t>(i) % kLayers, by_experts, 3)) << i;
    }
  }
}

TEST_P(WaysTest, ForgetAbandonedBatches) {
  LocalCluster cluster(false, 2, true);
  Trunk trunk(cluster.config(), {}, Model(), GetParam());
  ASSERT_TRUE(trunk.transport->WaitReady(absl::Now() + kPatience).ok());
  trunk.transport->Abandon();  // nothing
  for (uint32_t i = 0; i < 20; ++i) {
    std::vector<Rows> sent;
    for (uint32_t b = 0; b <= i % 2; ++b) {
      sent.push_back(RandomRows(100 + 2 * i + b, kRowLimit));
      ASSERT_EQ(trunk.transport->Dispatch({.layer = 1,
                                           .num_rows = kRowLimit,
                                           .top_k = kTopK,
                                           .activations = sent.back().activations.data(),
                                           .expert_ids = sent.back().ids.data(),
                                           .weights = sent.back().weights.data()}),
                absl::OkStatus());
    }
    trunk.transport->Abandon();
    const Rows rows = RandomRows(i, 5);
    const auto sums = trunk.Call(rows, 0);
    ASSERT_TRUE(sums.ok()) << sums.status();
    EXPECT_EQ(*sums, ExpectedSums(rows, 0, false, 2));
  }
}

class CountsTest : public testing::TestWithParam<DType> {};

TEST_P(CountsTest, WhatItSends) {
  const auto item = static_cast<int>(DTypeSizeBytes(GetParam()));
  LocalCluster cluster(false, 2, false);
  Trunk trunk(cluster.config());
  ASSERT_TRUE(trunk.transport->WaitReady(absl::Now() + kPatience).ok());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(trunk.Call(RandomRows(1, 4), 0, GetParam()).ok());
  for (const char* shard : {"0", "1"}) {
    const MetricLabels labels = {{"shard", shard}};
    EXPECT_EQ(
        trunk.metrics.HotCounter("banyan_trunk_expert_rows_total", "Rows sent to experts.", labels)
            .Value(),
        12);
    const double sent = trunk.metrics
                            .HotCounter("banyan_trunk_expert_sent_bytes_total",
                                        "Bytes of expert calls sent.", labels)
                            .Value();
    EXPECT_GT(sent, 3 * 4 * kHidden * item);
    EXPECT_LT(sent, 3 * (4 * (kHidden * item + kTopK * 6) + 90));
  }
  EXPECT_EQ(cluster.host(0)
                .metrics()
                .HotCounter("banyan_expert_calls_total", "Expert calls answered.")
                .Value(),
            3);
}

INSTANTIATE_TEST_SUITE_P(Types, CountsTest, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

TEST(ExpertDirectoryTest, TellsWhatItKnowsOfEveryShard) {
  LocalCluster cluster(true, 2, false);
  ClusterConfig config = cluster.config();
  config.shards[1].replicas.push_back("unix:/nonexistent/banyan.sock");
  Trunk trunk(config);
  ASSERT_TRUE(trunk.transport->WaitReady(absl::Now() + kPatience).ok());
  const auto shards = trunk.directory->Shards();
  ASSERT_EQ(shards.size(), 2u);
  EXPECT_EQ(shards[1].index, 1);
  EXPECT_EQ(shards[1].split, "experts");
  EXPECT_EQ(shards[1].pool_format, "bf16");
  EXPECT_EQ(shards[1].kernel_tier, "scalar");
  ASSERT_EQ(shards[1].replicas.size(), 2u);
  EXPECT_EQ(shards[1].replicas[0].state, "ready");
  EXPECT_TRUE(shards[1].replicas[0].ready);
  EXPECT_EQ(shards[1].replicas[1].address, "unix:/nonexistent/banyan.sock");
  EXPECT_FALSE(shards[1].replicas[1].ready);
  EXPECT_THAT(shards[1].replicas[1].state, HasSubstr("connecting: "));
}

TEST(ExpertDirectoryTest, RefusesByNameWhoServesAnotherModel) {
  LocalCluster cluster(false, 2, true);
  ExpectedModel model = Model();
  model.fingerprint = "0dd";
  Trunk trunk(cluster.config(), {}, model);
  absl::Status status;
  while ((status = trunk.transport->Ready()).code() != absl::StatusCode::kFailedPrecondition ||
         std::string(status.message())
                 .find("shard 1 of 2: " + cluster.host(1).address() +
                       " (refused: serves model fingerprint 5ca1ab1e, this "
                       "trunk's model is 0dd)") == std::string::npos) {
    ASSERT_EQ(trunk.transport->WaitReady(absl::Now() + absl::Milliseconds(20)).ok(), false);
  }
  const Rows rows = RandomRows(1, 1);
  EXPECT_EQ(trunk.Call(rows, 0).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(ExpertDirectoryTest, RefusesAClusterWithAGapUntilItIsClosed) {
  // Shard 1 tells of too few experts, then is replaced by a sound one at the same address.
  test::TempDir temp;
  const std::string address = "unix:" + temp.File("e1");
  ScalarExecutor first(Geometry(true, 0, 2));
  ScalarExecutor second(Geometry(true, 1, 2));
  ExpertHost host0({}, MakeDescription(first.geometry(), expert::v1::EXPERTS, 0, 2, kFingerprint),
                   &first);
  auto description = MakeDescription(second.geometry(), expert::v1::EXPERTS, 1, 2, kFingerprint);
  auto broken = description;
  broken.set_first_expert(10);
  broken.set_num_shard_experts(6);
  ExpertHost::Options options;
  options.listen = address;
  auto host1 = std::make_unique<ExpertHost>(options, broken, &second);
  ClusterConfig config;
  config.shards = {{{host0.address()}}, {{address}}};
  Trunk trunk(config);
  absl::Status status;
  do {
    status = trunk.transport->WaitReady(absl::Now() + absl::Milliseconds(20));
    ASSERT_FALSE(status.ok());
  } while (status.code() != absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "experts 8 to 10 (exclusive) are served by nobody; shard 1 of 2 (" +
                                  address + ") starts at 10");
  host1.reset();
  host1 = std::make_unique<ExpertHost>(options, description, &second);
  ASSERT_EQ(trunk.transport->WaitReady(absl::Now() + kPatience), absl::OkStatus());
  const Rows rows = RandomRows(3, 9);
  const auto sums = trunk.Call(rows, 0);
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_EQ(*sums, ExpectedSums(rows, 0, true, 2));
}

TEST(ExpertDirectoryTest, WaitsForAHostThatLoads) {
  ScalarExecutor executor(Geometry(false, 0, 1));
  ExpertHost host({}, MakeDescription(executor.geometry(), expert::v1::WIDTH, 0, 1, kFingerprint),
                  nullptr);
  ClusterConfig config;
  config.shards = {{{host.address()}}};
  Trunk trunk(config);
  absl::Status status;
  do {
    status = trunk.transport->WaitReady(absl::Now() + absl::Milliseconds(20));
    ASSERT_EQ(status.code(), absl::StatusCode::kUnavailable);
  } while (std::string(status.message()).find("this host is loading") == std::string::npos);
  host.SetExecutor(&executor);
  EXPECT_EQ(trunk.transport->WaitReady(absl::Now() + kPatience), absl::OkStatus());
  EXPECT_TRUE(trunk.Call(RandomRows(1, 2), 0).ok());
}

TEST(ExpertDirectoryTest, NeedsAddresses) {
  MetricsRegistry metrics;
  ExpertDirectory::Options options;
  options.model = Model();
  EXPECT_EQ(ExpertDirectory::Create(options, &metrics).status().message(),
            "cluster without shards");
  options.cluster.shards = {{{"a:1"}}, {{}}};
  EXPECT_EQ(ExpertDirectory::Create(options, &metrics).status().message(),
            "cluster shard 1 without replicas");
}

}  // namespace
}  // namespace banyan::trunk
