// Hosts that are late, die, hang and return: real processes, killed and stopped by signals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "services/trunk/experts/grpc_transport.h"
#include "tests/fakes/self_process.h"
#include "tests/fakes/temp_dir.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::trunk {
namespace {

using testing::HasSubstr;
using namespace testing_experts;  // NOLINT: names of the small model

constexpr absl::Duration kPatience = absl::Seconds(60);

// Calls as frames, and through shared memory.
class FailoverTest : public testing::TestWithParam<bool> {
 protected:
  std::string Address(const std::string& name) { return "unix:" + temp_.File(name); }

  std::unique_ptr<SelfProcess> Host(const std::string& address, int32_t shard, int32_t num_shards) {
    return std::make_unique<SelfProcess>(std::vector<std::string>{
        "--expert_child", address, std::to_string(shard), std::to_string(num_shards)});
  }

  void Connect(const std::vector<std::vector<std::string>>& shards,
               const GrpcTransport::Options& options = {}) {
    ExpertDirectory::Options directory_options;
    for (const auto& replicas : shards) directory_options.cluster.shards.push_back({replicas});
    directory_options.model = Model();
    directory_options.shared_memory = GetParam();
    auto created = ExpertDirectory::Create(directory_options, &metrics_);
    ASSERT_TRUE(created.ok());
    directory_ = *std::move(created);
    transport_ = std::make_unique<GrpcTransport>(options, directory_.get(), &metrics_);
    num_shards_ = static_cast<int32_t>(shards.size());
  }

  void WaitReady() { ASSERT_EQ(transport_->WaitReady(absl::Now() + kPatience), absl::OkStatus()); }
  // Until each of `count` replicas has a stream.
  void WaitReplicas(size_t count) {
    while (true) {
      size_t ready = 0;
      for (const auto& shard : directory_->Shards()) {
        for (const auto& replica : shard.replicas) ready += replica.ready ? 1 : 0;
      }
      if (ready == count) return;
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  // Until Ready says so.
  void WaitState(const std::string& text) {
    while (std::string(transport_->Ready().message()).find(text) == std::string::npos) {
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  absl::Status Dispatch(const Rows& rows) {
    return transport_->Dispatch({.step_id = 7,
                                 .layer = 1,
                                 .num_rows = rows.num_rows,
                                 .top_k = kTopK,
                                 .activations = rows.activations.data(),
                                 .expert_ids = rows.ids.data(),
                                 .weights = rows.weights.data()});
  }

  absl::Status Call(const Rows& rows, std::vector<float>* out) {
    const absl::Status status = Dispatch(rows);
    if (!status.ok()) return status;
    out->assign(rows.activations.size(), NAN);
    return transport_->Combine(out->data());
  }

  void ExpectRight() {
    const Rows rows = RandomRows(++seed_, 6);
    std::vector<float> out;
    ASSERT_EQ(Call(rows, &out), absl::OkStatus());
    EXPECT_EQ(out, ExpectedSums(rows, 1, false, num_shards_));
  }

  double Resends(const char* reason) {
    return metrics_
        .Counter("banyan_trunk_expert_resends_total",
                 "Expert calls sent again to another replica: the stream was lost, or the answer "
                 "late.",
                 {{"shard", "0"}, {"reason", reason}})
        .Value();
  }
  double LateReplies() {
    return metrics_
        .Counter("banyan_trunk_expert_late_replies_total",
                 "Replies dropped because the call was over.", {{"shard", "0"}})
        .Value();
  }

  test::TempDir temp_;
  MetricsRegistry metrics_;
  std::unique_ptr<ExpertDirectory> directory_;
  std::unique_ptr<GrpcTransport> transport_;
  int32_t num_shards_ = 0;
  uint32_t seed_ = 100;
};

TEST_P(FailoverTest, WaitsForAHostThatStartsLate) {
  const auto first = Host(Address("a"), 0, 2);
  Connect({{Address("a")}, {Address("b")}});
  WaitState(Address("a") + " (connecting: waiting for the other shards)");
  WaitState("shard 1 of 2: " + Address("b") + " (connecting: failed to connect");
  EXPECT_EQ(transport_->Ready().code(), absl::StatusCode::kUnavailable);
  const auto second = Host(Address("b"), 1, 2);
  WaitReady();
  ExpectRight();
}

TEST_P(FailoverTest, ADeadHostFailsTheCallAndReturns) {
  const auto first = Host("127.0.0.1:0", 0, 2);
  auto second = Host(Address("b"), 1, 2);
  Connect({{first->address()}, {Address("b")}});
  WaitReady();
  ExpectRight();

  // Stopped first, so that the call is under way for certain when it dies.
  const Rows rows = RandomRows(1, 3);
  second->Signal(SIGSTOP);
  ASSERT_EQ(Dispatch(rows), absl::OkStatus());
  second->Kill();
  std::vector<float> out(rows.activations.size());
  absl::Status status = transport_->Combine(out.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("layer 1: no replica answers: shard 1 of 2: " + Address("b")));
  EXPECT_EQ(transport_->Ready().code(), absl::StatusCode::kUnavailable);
  // At once, as nobody is there to ask.
  status = Call(rows, &out);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);

  second = Host(Address("b"), 1, 2);
  WaitReady();
  ExpectRight();
  // Lost while nothing is under way: noticed, and usable again when it has returned.
  second->Kill();
  while (transport_->Ready().ok()) absl::SleepFor(absl::Milliseconds(1));
  second = Host(Address("b"), 1, 2);
  WaitReady();
  ExpectRight();
}

TEST_P(FailoverTest, AnotherReplicaAnswersForADeadOne) {
  auto first = Host(Address("a"), 0, 1);
  const auto second = Host("127.0.0.1:0", 0, 1);
  Connect({{Address("a"), second->address()}});
  WaitReplicas(2);
  const Rows rows = RandomRows(2, kRowLimit);
  first->Signal(SIGSTOP);
  ASSERT_EQ(Dispatch(rows), absl::OkStatus());
  first->Kill();
  std::vector<float> out(rows.activations.size());
  ASSERT_EQ(transport_->Combine(out.data()), absl::OkStatus());
  EXPECT_EQ(out, ExpectedSums(rows, 1, false, 1));
  EXPECT_EQ(Resends("lost"), 1);
  first = Host(Address("a"), 0, 1);
  WaitReplicas(2);
  ExpectRight();
}

TEST_P(FailoverTest, AnotherReplicaAnswersForAHungOneAndTheLateReplyIsDropped) {
  const auto first = Host(Address("a"), 0, 1);
  const auto second = Host(Address("b"), 0, 1);
  Connect({{Address("a"), Address("b")}},
          {.resend_after = absl::Milliseconds(20), .resend_after_per_row = absl::ZeroDuration()});
  WaitReplicas(2);
  first->Signal(SIGSTOP);
  ExpectRight();
  EXPECT_EQ(Resends("late"), 1);
  EXPECT_EQ(LateReplies(), 0);
  ExpectRight();  // the replica that answered is asked first from now on
  first->Signal(SIGCONT);
  while (LateReplies() == 0) ExpectRight();
  EXPECT_EQ(LateReplies(), 1);
  // The first replica is usable again.
  second->Signal(SIGSTOP);
  ExpectRight();
  second->Signal(SIGCONT);
}

TEST_P(FailoverTest, AHungHostIsGivenUpInBoundedTimeAndReturns) {
  const auto only = Host(Address("a"), 0, 1);
  Connect({{Address("a")}}, {.give_up_after = absl::Milliseconds(200),
                             .give_up_after_per_row = absl::ZeroDuration()});
  WaitReady();
  only->Signal(SIGSTOP);
  const Rows rows = RandomRows(3, 2);
  std::vector<float> out;
  const absl::Status status = Call(rows, &out);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("shard 0 of 1: " + Address("a") +
                        " (connecting: no answer to a call of 2 rows within 2"));
  EXPECT_FALSE(transport_->Ready().ok());
  only->Signal(SIGCONT);
  WaitReady();
  ExpectRight();
}

// Both batches of a step whose host dies go to the other replica, in their order.
TEST_P(FailoverTest, AnotherReplicaAnswersBothBatchesOfADeadOne) {
  auto first = Host(Address("a"), 0, 1);
  const auto second = Host(Address("b"), 0, 1);
  Connect({{Address("a"), Address("b")}});
  WaitReplicas(2);
  const Rows a = RandomRows(2, kRowLimit);
  const Rows b = RandomRows(3, 7);
  first->Signal(SIGSTOP);
  ASSERT_EQ(Dispatch(a), absl::OkStatus());
  ASSERT_EQ(Dispatch(b), absl::OkStatus());
  first->Kill();
  std::vector<float> out(a.activations.size());
  ASSERT_EQ(transport_->Combine(out.data()), absl::OkStatus());
  EXPECT_EQ(out, ExpectedSums(a, 1, false, 1));
  out.resize(b.activations.size());
  ASSERT_EQ(transport_->Combine(out.data()), absl::OkStatus());
  EXPECT_EQ(out, ExpectedSums(b, 1, false, 1));
  EXPECT_EQ(Resends("lost"), 2);
}

// Nobody is left for either: the first Combine says so at once, and a hung host in bounded time.
TEST_P(FailoverTest, TwoBatchesFailInBoundedTime) {
  auto only = Host(Address("a"), 0, 1);
  Connect({{Address("a")}}, {.give_up_after = absl::Milliseconds(200),
                             .give_up_after_per_row = absl::ZeroDuration()});
  for (const bool killed : {true, false}) {
    WaitReady();
    ExpectRight();
    only->Signal(SIGSTOP);
    const Rows a = RandomRows(4, kRowLimit);
    const Rows b = RandomRows(5, 7);
    ASSERT_EQ(Dispatch(a), absl::OkStatus());
    ASSERT_EQ(Dispatch(b), absl::OkStatus());
    if (killed) only->Kill();
    std::vector<float> out(a.activations.size());
    EXPECT_EQ(transport_->Combine(out.data()).code(), absl::StatusCode::kUnavailable);
    transport_->Abandon();
    if (killed) {
      only = Host(Address("a"), 0, 1);
    } else {
      only->Signal(SIGCONT);
    }
  }
  WaitReady();
  ExpectRight();
}

TEST_P(FailoverTest, EndsWhileHostsAreGoneOrHung) {
  const auto hung = Host(Address("a"), 0, 2);
  Connect({{Address("a")}, {Address("nobody")}});
  WaitState("waiting for the other shards");
  hung->Signal(SIGSTOP);
  transport_.reset();
  directory_.reset();
}

INSTANTIATE_TEST_SUITE_P(Ways, FailoverTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "SharedMemory" : "Frames"; });

}  // namespace
}  // namespace banyan::trunk
