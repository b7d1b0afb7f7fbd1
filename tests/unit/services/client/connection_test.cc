#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "common/base/strings.h"
#include "services/client/connection/generation.h"
#include "services/client/connection/load_watcher.h"
#include "services/client/connection/metrics_scrape.h"
#include "services/client/connection/request_flags.h"
#include "services/client/connection/server_connection.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

TEST(ServerAddress, TakesWhatGrpcTakes) {
  for (const char* address :
       {"127.0.0.1:50051", "localhost:1", "[::1]:65535", "unix:/run/banyan/trunk.sock", "h:080"}) {
    EXPECT_TRUE(CheckServerAddress(address).ok()) << address;
  }
}

TEST(ServerAddress, SaysWhatIsExpected) {
  for (const char* address :
       {"", "host", ":1", "host:", "host:0", "host:65536", "host:5005x", "::1:50051", "unix:"}) {
    const absl::Status status = CheckServerAddress(address);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(Message(status), HasSubstr("server address '" + std::string(address) + "'"));
  }
  const absl::Status status = CheckServerAddress("unix:/" + std::string(107, 'x'));
  EXPECT_THAT(Message(status), HasSubstr("path of 108 bytes, at most 107 fit a socket"));
}

TEST(Connect, SaysHowToStartWhatDoesNotListen) {
  const test::TempDir temp;
  const std::string address = "unix:" + temp.path() + "/none.sock";
  const auto channel = Connect(address, absl::Seconds(20));
  EXPECT_EQ(channel.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Message(channel.status()),
            "nothing listens on " + address + ": start it with ./run.sh demo or banyan serve");
}

TEST(ExplainCall, KeepsTheCodeAndSaysWhatToDo) {
  const auto explain = [](const absl::Status& status) {
    const absl::Status explained = ExplainCall(status, "h:1");
    EXPECT_EQ(explained.code(), status.code());
    return Message(explained);
  };
  EXPECT_TRUE(ExplainCall(absl::OkStatus(), "h:1").ok());
  EXPECT_THAT(explain(absl::UnavailableError("shard 1 is gone")),
              HasSubstr("h:1 cannot answer now: shard 1 is gone (banyan status"));
  EXPECT_THAT(explain(absl::UnavailableError("failed to connect to all addresses")),
              HasSubstr("nothing listens on h:1"));
  EXPECT_THAT(explain(absl::DeadlineExceededError("x")), HasSubstr("--timeout"));
  EXPECT_THAT(explain(absl::UnimplementedError("x")), HasSubstr("an expert's address?"));
  EXPECT_THAT(explain(absl::ResourceExhaustedError("queue of 64 is full")),
              HasSubstr("h:1 is overloaded: queue of 64 is full"));
  EXPECT_EQ(explain(absl::InvalidArgumentError("top_p 2: expected 0..1")),
            "top_p 2: expected 0..1");
  EXPECT_EQ(explain(absl::InternalError("")), "the call failed without a message");
}

inference::v1::GenerateResponse ChunkOf(const std::string& text, std::vector<int32_t> ids) {
  inference::v1::GenerateResponse response;
  response.mutable_chunk()->set_text(text);
  response.mutable_chunk()->mutable_token_ids()->Add(ids.begin(), ids.end());
  return response;
}

TEST(Generation, CollectsTextTokensAndTimes) {
  const absl::Time start = absl::FromUnixSeconds(1000);
  Generation generation(start);
  inference::v1::GenerateResponse started;
  started.mutable_started()->set_prompt_tokens(7);
  inference::v1::GenerateResponse finished;
  finished.mutable_finished()->set_reason(inference::v1::STOP);
  ASSERT_TRUE(generation.Add(started, start + absl::Milliseconds(5)).ok());
  ASSERT_TRUE(generation.Add(ChunkOf("a", {1}), start + absl::Milliseconds(30)).ok());
  // Two tokens in one message share the time since the last one; text alone counts for no token.
  ASSERT_TRUE(generation.Add(ChunkOf("bc", {2, 3}), start + absl::Milliseconds(50)).ok());
  ASSERT_TRUE(generation.Add(ChunkOf("!", {}), start + absl::Milliseconds(90)).ok());
  EXPECT_FALSE(generation.has_finished);
  ASSERT_TRUE(generation.Add(finished, start + absl::Milliseconds(91)).ok());
  EXPECT_TRUE(generation.has_finished);
  EXPECT_EQ(generation.text, "abc!");
  EXPECT_THAT(generation.token_ids, ElementsAre(1, 2, 3));
  EXPECT_EQ(generation.TimeToFirstToken(), absl::Milliseconds(30));
  EXPECT_THAT(generation.token_gaps, ElementsAre(absl::Milliseconds(10), absl::Milliseconds(10)));
  EXPECT_DOUBLE_EQ(generation.TokensPerSecond(), 100);
  EXPECT_EQ(DescribeSpeed(generation), "3 tokens, 100.0 tokens/s, first after 30 ms");
  // All at once, long after they were made.
  generation.finished.mutable_timings()->set_decode_seconds(0.08);
  EXPECT_EQ(DescribeSpeed(generation), "3 tokens, 25.0 tokens/s, first after 30 ms");
  EXPECT_EQ(generation.Add(finished, start).code(), absl::StatusCode::kInternal);
}

TEST(Generation, RefusesAnEventOfUnknownKind) {
  Generation generation(absl::UnixEpoch());
  EXPECT_EQ(generation.Add({}, absl::UnixEpoch()).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(DescribeSpeed(generation), "no tokens");
}

TEST(SamplingFlags, FillsOnlyWhatIsSet) {
  SamplingFlags flags;
  inference::v1::GenerateRequest request;
  ASSERT_TRUE(flags.Fill(request).ok());
  EXPECT_FALSE(request.sampling().has_temperature());
  EXPECT_FALSE(request.sampling().has_seed());
  flags.temperature = 0;
  flags.seed = 0;
  flags.logit_bias = {"42=-1.5", "7=2"};
  flags.stop = {"\n\n"};
  ASSERT_TRUE(flags.Fill(request).ok());
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_TRUE(request.sampling().has_seed());
  EXPECT_EQ(request.sampling().logit_bias().at(42), -1.5f);
  EXPECT_EQ(request.stop(0), "\n\n");
}

TEST(SamplingFlags, NamesABadBias) {
  for (const char* entry : {"", "42", "=1", "42=", "x=1", "42=1x", "99999999999=1"}) {
    SamplingFlags flags;
    flags.logit_bias = {entry};
    inference::v1::GenerateRequest request;
    EXPECT_THAT(Message(flags.Fill(request)),
                HasSubstr("--logit_bias '" + std::string(entry) + "': expected ID=VALUE"));
  }
}

TEST(MetricsPage, SumsAFamilyOverItsLabels) {
  const auto page = MetricsPage::Parse(
      "# HELP a_total text\n# TYPE a_total counter\n"
      "a_total{outcome=\"ok\"} 3\na_total{outcome=\"a } \\\" b\",x=\"\"} 4.5 1700000000\n"
      "b 1e3\nbroken\nc{x=\"1\"\n\n d 1\nlast 2");
  EXPECT_THAT(page.Totals(), ElementsAre(Pair("a_total", 7.5), Pair("b", 1000), Pair("last", 2)));
}

TEST(ScrapeMetrics, SaysWhichAddressHasNone) {
  const auto values = ScrapeMetrics("127.0.0.1:1", absl::Seconds(5));
  EXPECT_THAT(Message(values.status()), HasSubstr("no metrics at 127.0.0.1:1: "));
}

TEST(LoadPhase, HasANameForEach) {
  EXPECT_EQ(LoadPhaseName(common::v1::LoadProgress::HEADERS), "headers");
  EXPECT_EQ(LoadPhaseName(common::v1::LoadProgress::READY), "ready");
  EXPECT_EQ(LoadPhaseName(static_cast<common::v1::LoadProgress::Phase>(77)), "unknown");
}

}  // namespace
}  // namespace banyan::client
