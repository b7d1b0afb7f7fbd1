#include "services/trunk/engine/join_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/base/trace_context.h"
#include "tests/unit/services/trunk/engine/engine_harness.h"

namespace banyan::trunk {
namespace {

using testing::ElementsAre;

constexpr char kTraceparent[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

Request Named(const std::string& id, const std::string& traceparent = "") {
  Request request;
  request.request_id = id;
  request.traceparent = traceparent;
  return request;
}

TEST(JoinTrace, NamesARequestUntilItsStepHasRun) {
  JoinTrace trace;
  EXPECT_EQ(trace.Next(), "");
  trace.Add(Named("a", kTraceparent));
  trace.Add(Named("b"));
  const std::string both = std::string("a ") + kTraceparent + "\nb\n";
  EXPECT_EQ(trace.Next(), both);
  EXPECT_EQ(trace.Next(), both) << "the step failed: once more";
  trace.Add(Named("c"));
  trace.Commit();
  EXPECT_EQ(trace.Next(), "c\n") << "c joined after that step was formed";
  trace.Commit();
  EXPECT_EQ(trace.Next(), "");
  trace.Commit();
  EXPECT_EQ(trace.Next(), "");
}

TEST(JoinTrace, WhatDoesNotFitComesWithTheNextSteps) {
  JoinTrace trace;
  for (int i = 0; i < 100; ++i) {
    trace.Add(Named("request-" + std::to_string(i) + std::string(100, 'x'), kTraceparent));
  }
  size_t named = 0;
  int steps = 0;
  for (std::string_view text = trace.Next(); !text.empty(); text = trace.Next(), ++steps) {
    ASSERT_LE(text.size(), kMaxTraceBytes);
    const auto entries = ParseTrace(text);
    ASSERT_TRUE(entries.ok()) << entries.status();
    for (const TraceEntry& entry : *entries) {
      EXPECT_TRUE(entry.request_id.starts_with("request-" + std::to_string(named) + "x"));
      ++named;
    }
    trace.Commit();
  }
  EXPECT_EQ(named, 100u);
  EXPECT_GT(steps, 1);
}

TEST(JoinTrace, LeavesOutWhatMayNotStandInALog) {
  JoinTrace trace;
  trace.Add(Named(""));
  trace.Add(Named("a b"));
  trace.Add(Named("a\nb"));
  EXPECT_EQ(trace.Next(), "");
}

// The engine names each request in its first step and in no other.
TEST(JoinTrace, OnlyStepsThatARequestJoinsHaveATrace) {
  Harness harness;
  std::vector<std::string> traces;
  harness.forward.on_forward = [&](const Step& step) {
    traces.emplace_back(step.trace);
    return step.step_id == 0 ? absl::UnavailableError("an expert went") : absl::OkStatus();
  };
  harness.Start();
  Request request = MakeRequest(MakePrompt(3), 5);
  request.request_id = "only-one";
  request.traceparent = kTraceparent;
  EXPECT_TRUE(harness.Submit(request)->Wait().status.ok());
  harness.engine.reset();
  const std::string line = std::string("only-one ") + kTraceparent + "\n";
  EXPECT_THAT(traces, ElementsAre(line, line, "", "", "", "")) << "the first step failed";
}

}  // namespace
}  // namespace banyan::trunk
