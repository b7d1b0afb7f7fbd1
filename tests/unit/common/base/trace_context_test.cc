#include "common/base/trace_context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace banyan {
namespace {

using testing::HasSubstr;

constexpr char kValid[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(Traceparent, IsCarriedOn) {
  ASSERT_TRUE(ParseTraceparent(kValid).ok());
  EXPECT_EQ(*ParseTraceparent(kValid), kValid);
  EXPECT_EQ(TraceId(kValid), "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(TraceId(""), "");
}

TEST(Traceparent, LaterVersionsAreReadAsFarAsTheFirstGoes) {
  const std::string ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";
  EXPECT_EQ(*ParseTraceparent("cc-" + ids + "01"), kValid);
  EXPECT_EQ(*ParseTraceparent("cc-" + ids + "01-what-the-future-will-be-like"), kValid);
  EXPECT_EQ(*ParseTraceparent("cc-" + ids + "01-"), kValid);
  EXPECT_FALSE(ParseTraceparent("cc-" + ids + "01.what").ok());
  EXPECT_FALSE(ParseTraceparent("cc-" + ids + "0").ok());
  EXPECT_FALSE(ParseTraceparent("00-" + ids + "01-more").ok()) << "version 00 has no more";
}

TEST(Traceparent, OnlyKnownFlagsGoOn) {
  const std::string ids = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";
  EXPECT_EQ(*ParseTraceparent(ids + "00"), ids + "00");
  EXPECT_EQ(*ParseTraceparent(ids + "ff"), ids + "03");
  EXPECT_EQ(*ParseTraceparent(ids + "fc"), ids + "00");
}

TEST(Traceparent, RefusesWhatTheStandardForbids) {
  const std::string valid = kValid;
  for (const std::string& header :
       {std::string(),
        std::string("00"),
        valid.substr(0, 54),
        valid + "0",
        valid + "-",
        " " + valid,
        valid + " ",
        "ff" + valid.substr(2),
        "0x" + valid.substr(2),
        "A0" + valid.substr(2),
        std::string("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
        std::string("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0G"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01"),
        std::string("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e47-3600f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-\xff\xff")}) {
    const auto parsed = ParseTraceparent(header);
    ASSERT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << header;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("traceparent '"));
  }
}

TEST(Trace, LinesComeBack) {
  std::string trace;
  ASSERT_TRUE(AppendTrace({"r-1", kValid}, &trace));
  ASSERT_TRUE(AppendTrace({"my/request:2", ""}, &trace));
  EXPECT_EQ(trace, std::string("r-1 ") + kValid + "\nmy/request:2\n");
  const auto entries = ParseTrace(trace);
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].request_id, "r-1");
  EXPECT_EQ((*entries)[0].traceparent, kValid);
  EXPECT_EQ((*entries)[1].request_id, "my/request:2");
  EXPECT_EQ((*entries)[1].traceparent, "");
  EXPECT_TRUE(ParseTrace("")->empty());
}

TEST(Trace, IsBounded) {
  std::string trace;
  const std::string id(kMaxRequestIdBytes, 'x');
  int count = 0;
  while (AppendTrace({id, kValid}, &trace)) ++count;
  EXPECT_EQ(count, 4096 / (128 + 1 + 55 + 1));
  EXPECT_LE(trace.size(), kMaxTraceBytes);
  EXPECT_EQ(ParseTrace(trace)->size(), static_cast<size_t>(count));
  EXPECT_FALSE(ParseTrace(std::string(2100, 'x') + "\n").ok());
  std::string many;
  for (int i = 0; i < 2049; ++i) many += "x\n";
  EXPECT_THAT(std::string(ParseTrace(many).status().message()),
              HasSubstr("trace of 4098 bytes, expected at most 4096"));
}

TEST(Trace, RefusesWhatMayNotStandInALog) {
  const std::string valid = kValid;
  for (const std::string& trace :
       {std::string("r-1"), std::string("\n"), std::string("r-1\n\n"), std::string(" r-1\n"),
        std::string("r-1 \n"), std::string("r\t1\n"), std::string("r\x1b[2J\n"),
        std::string("r\xff\n"), std::string("\0\n", 2), "r-1  " + valid + "\n",
        "r-1 " + valid + " \n", "r-1 " + valid + " more\n", "r-1 cc" + valid.substr(2) + "\n",
        std::string(129, 'x') + "\n", "r-1 " + valid.substr(0, 53) + "ff\n"}) {
    EXPECT_EQ(ParseTrace(trace).status().code(), absl::StatusCode::kInvalidArgument) << trace;
  }
}

}  // namespace
}  // namespace banyan
