// WatchLoad streams over a real in-process gRPC server.
#include "common/rpc/load_watchers.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "proto/expert/v1/expert.grpc.pb.h"

namespace banyan {
namespace {

using common::v1::LoadProgress;
using expert::v1::Experts;

class Service final : public Experts::Service {
 public:
  explicit Service(LoadWatchers* watchers) : watchers_(watchers) {}
  grpc::Status WatchLoad(grpc::ServerContext* context, const expert::v1::WatchLoadRequest*,
                         grpc::ServerWriter<LoadProgress>* writer) override {
    return watchers_->Serve(context, writer);
  }

 private:
  LoadWatchers* const watchers_;
};

class LoadWatchersTest : public ::testing::Test {
 protected:
  LoadWatchersTest() : watchers_(tracker_), service_(&watchers_) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = Experts::NewStub(server_->InProcessChannel({}));
  }
  ~LoadWatchersTest() override {
    watchers_.Stop();
    server_->Shutdown();
  }

  LoadTracker tracker_;
  LoadWatchers watchers_;
  Service service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Experts::Stub> stub_;
};

TEST_F(LoadWatchersTest, TellsChangesUntilReady) {
  grpc::ClientContext context;
  const auto stream = stub_->WatchLoad(&context, {});
  LoadProgress progress;
  ASSERT_TRUE(stream->Read(&progress));
  tracker_.SetPhase(LoadProgress::READ);
  do {
    ASSERT_TRUE(stream->Read(&progress));
  } while (progress.phase() != LoadProgress::READ);
  tracker_.SetBytes(5, 10);
  do {
    ASSERT_TRUE(stream->Read(&progress));
  } while (progress.bytes_done() != 5);
  EXPECT_EQ(progress.bytes_total(), 10u);
  tracker_.SetPhase(LoadProgress::READY);
  while (stream->Read(&progress)) continue;
  EXPECT_EQ(progress.phase(), LoadProgress::READY);
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(watchers_.WaitUntilTold(absl::Now() + absl::Seconds(30)));
}

TEST_F(LoadWatchersTest, LateStreamsGetTheLastMessage) {
  tracker_.SetPhase(LoadProgress::FAILED, "layer 7 is missing");
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    const auto stream = stub_->WatchLoad(&context, {});
    LoadProgress progress;
    std::vector<LoadProgress> all;
    while (stream->Read(&progress)) all.push_back(progress);
    ASSERT_FALSE(all.empty());
    EXPECT_EQ(all.back().phase(), LoadProgress::FAILED);
    EXPECT_EQ(all.back().detail(), "layer 7 is missing");
    EXPECT_TRUE(stream->Finish().ok());
  }
}

// A stalled load is still told about at least once a second.
TEST_F(LoadWatchersTest, SilenceIsBroken) {
  grpc::ClientContext context;
  const auto stream = stub_->WatchLoad(&context, {});
  LoadProgress progress;
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(stream->Read(&progress));
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(LoadWatchersTest, StopEndsOpenStreams) {
  grpc::ClientContext context;
  const auto stream = stub_->WatchLoad(&context, {});
  LoadProgress progress;
  ASSERT_TRUE(stream->Read(&progress));
  watchers_.Stop();
  while (stream->Read(&progress)) continue;
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext later;
  const auto refused = stub_->WatchLoad(&later, {});
  while (refused->Read(&progress)) continue;
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// A thread each, so they are counted; who leaves makes room.
TEST_F(LoadWatchersTest, WatchersAreBounded) {
  LoadProgress progress;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<LoadProgress>>> streams;
  for (int i = 0; i < WatchCalls::kMaxCalls; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->WatchLoad(contexts.back().get(), {}));
    ASSERT_TRUE(streams.back()->Read(&progress));
  }
  grpc::ClientContext refused;
  EXPECT_EQ(stub_->WatchLoad(&refused, {})->Finish().error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  contexts.front()->TryCancel();
  EXPECT_EQ(streams.front()->Finish().error_code(), grpc::StatusCode::CANCELLED);
  bool taken = false;
  for (int i = 0; i < 100 && !taken; ++i) {  // until the server has seen it, 100 ms
    grpc::ClientContext context;
    const auto stream = stub_->WatchLoad(&context, {});
    taken = stream->Read(&progress);
    if (!taken) absl::SleepFor(absl::Milliseconds(20));
    context.TryCancel();
    (void)stream->Finish();
  }
  EXPECT_TRUE(taken);
  for (const auto& context : contexts) context->TryCancel();
  for (size_t i = 1; i < streams.size(); ++i) (void)streams[i]->Finish();
}

}  // namespace
}  // namespace banyan
