// What joins with a step is told to every shard once, whatever happens to the call.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/base/logging.h"
#include "services/trunk/experts/expert_directory.h"
#include "services/trunk/experts/grpc_transport.h"
#include "tests/fakes/expert_host.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::trunk {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using namespace testing_experts;  // NOLINT: names of the small model

constexpr absl::Duration kPatience = absl::Seconds(30);
constexpr char kTrace[] = "r-1 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\nr-2\n";
constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";

// Answers the first call only once it is told to.
class HeldExecutor final : public expert::ExpertExecutor {
 public:
  explicit HeldExecutor(const ShardGeometry& geometry) : scalar_(geometry) {}
  const ShardGeometry& geometry() const override { return scalar_.geometry(); }
  absl::Status Run(const expert::ExpertCall& call) override {
    released_.WaitForNotification();
    return scalar_.Run(call);
  }
  void Release() { released_.Notify(); }

 private:
  ScalarExecutor scalar_;
  absl::Notification released_;
};

class TraceTest : public testing::Test {
 protected:
  ~TraceTest() override {
    transport_.reset();
    directory_.reset();
  }

  // The address of a host that lives as long as the test.
  template <typename Executor>
  std::string Host(std::unique_ptr<Executor> owned, int32_t shard, int32_t num_shards) {
    Executor* const executor = owned.get();
    executors_.push_back(std::move(owned));
    hosts_.push_back(std::make_unique<ExpertHost>(
        ExpertHost::Options{},
        MakeDescription(executor->geometry(), expert::v1::WIDTH, shard, num_shards, kFingerprint),
        executor));
    return hosts_.back()->address();
  }

  void Connect(const ClusterConfig& cluster, const GrpcTransport::Options& options = {}) {
    ExpertDirectory::Options directory_options;
    directory_options.cluster = cluster;
    directory_options.model = Model();
    auto created = ExpertDirectory::Create(directory_options, &metrics_);
    ASSERT_TRUE(created.ok());
    directory_ = *std::move(created);
    transport_ = std::make_unique<GrpcTransport>(options, directory_.get(), &metrics_);
    ASSERT_EQ(transport_->WaitReady(absl::Now() + kPatience), absl::OkStatus());
  }

  void Call(int64_t step_id, int32_t layer, std::string_view trace) {
    const Rows rows = RandomRows(7, 4);
    ASSERT_EQ(transport_->Dispatch({.step_id = step_id,
                                    .layer = layer,
                                    .num_rows = rows.num_rows,
                                    .top_k = kTopK,
                                    .activations = rows.activations.data(),
                                    .expert_ids = rows.ids.data(),
                                    .weights = rows.weights.data(),
                                    .trace = trace}),
              absl::OkStatus());
    std::vector<float> out(rows.activations.size());
    ASSERT_EQ(transport_->Combine(out.data()), absl::OkStatus());
  }

  // The request_joined lines since, from the request id to the attempt.
  static std::vector<std::string> Joined(const std::string& log) {
    std::vector<std::string> out;
    for (size_t at = log.find("request_joined "); at != std::string::npos;
         at = log.find("request_joined ", at + 1)) {
      const size_t begin = at + std::string("request_joined ").size();
      out.push_back(log.substr(begin, log.find(" peer=", begin) - begin));
    }
    return out;
  }

  MetricsRegistry metrics_;
  std::vector<std::unique_ptr<expert::ExpertExecutor>> executors_;  // outlive the hosts
  std::vector<std::unique_ptr<ExpertHost>> hosts_;
  std::unique_ptr<ExpertDirectory> directory_;
  std::unique_ptr<GrpcTransport> transport_;
};

TEST_F(TraceTest, EveryShardIsToldWithTheFirstCallOfTheStepOnly) {
  ClusterConfig cluster;
  for (int32_t s = 0; s < 2; ++s) {
    cluster.shards.push_back(
        {{Host(std::make_unique<ScalarExecutor>(Geometry(false, s, 2)), s, 2)}});
  }
  Connect(cluster);
  testing::internal::CaptureStderr();
  for (int32_t layer = 0; layer < kLayers; ++layer) Call(3, layer, kTrace);
  const std::string first =
      std::string("request_id=r-1 trace_id=") + kTraceId + " step=3 layer=0 attempt=0";
  const std::string second = "request_id=r-2 step=3 layer=0 attempt=0";
  EXPECT_THAT(Joined(testing::internal::GetCapturedStderr()),
              testing::UnorderedElementsAre(first, first, second, second));

  testing::internal::CaptureStderr();
  for (int32_t layer = 0; layer < kLayers; ++layer) Call(4, layer, "");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), IsEmpty());

  testing::internal::CaptureStderr();
  SetLogLevel(LogLevel::kWarning);
  Call(5, 0, kTrace);
  SetLogLevel(LogLevel::kInfo);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), IsEmpty());
}

TEST_F(TraceTest, ACallSentAgainTellsTheSame) {
  auto owned = std::make_unique<HeldExecutor>(Geometry(false, 0, 1));
  HeldExecutor& held = *owned;
  auto quick = std::make_unique<ScalarExecutor>(Geometry(false, 0, 1));
  ClusterConfig cluster;
  cluster.shards.push_back({{Host(std::move(owned), 0, 1), Host(std::move(quick), 0, 1)}});
  testing::internal::CaptureStderr();
  Connect(cluster,
          {.resend_after = absl::Milliseconds(20), .resend_after_per_row = absl::ZeroDuration()});
  // Until both replicas have a stream, and the one that holds its answers is asked first.
  for (size_t ready = 0; ready < 2;) {
    ready = 0;
    const auto shards = directory_->Shards();
    for (const auto& replica : shards[0].replicas) ready += replica.ready ? 1 : 0;
  }
  Call(9, 1, "r-7\n");
  EXPECT_THAT(Joined(testing::internal::GetCapturedStderr()),
              ElementsAre("request_id=r-7 step=9 layer=1 attempt=1"));
  // The held answer brings the line of its own attempt when its call is computed at last.
  testing::internal::CaptureStderr();
  held.Release();
  while (metrics_
             .Counter("banyan_trunk_expert_late_replies_total",
                      "Replies dropped because the call was over.", {{"shard", "0"}})
             .Value() == 0) {
    Call(10, 1, "");
  }
  EXPECT_THAT(Joined(testing::internal::GetCapturedStderr()),
              ElementsAre("request_id=r-7 step=9 layer=1 attempt=0"));
}

}  // namespace
}  // namespace banyan::trunk
