#include "services/trunk/server/request_validation.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/base/strings.h"
#include "services/trunk/server/prompt.h"
#include "tests/unit/services/trunk/server/demo_codec.h"

namespace banyan::trunk {
namespace {

using inference::v1::ChatPrompt;
using inference::v1::GenerateRequest;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

GenerateRequest Valid() {
  GenerateRequest request;
  request.set_text("hello");
  return request;
}

absl::Status Check(const std::function<void(GenerateRequest&)>& change,
                   const ModelFacts& facts = DemoFacts()) {
  GenerateRequest request = Valid();
  change(request);
  absl::StatusOr<Request> resolved = ResolveRequest(request, facts);
  if (!resolved.ok()) return resolved.status();
  return PromptIds(request, facts).status();
}

void ExpectInvalid(const std::function<void(GenerateRequest&)>& change,
                   const ::testing::Matcher<std::string>& message) {
  const absl::Status status = Check(change);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), message);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(RequestValidationTest, SamplingOutOfRangeNamesFieldValueAndRange) {
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_temperature(kNan); },
                AllOf(HasSubstr("sampling.temperature nan"), HasSubstr("from 0 to 1000")));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_temperature(-0.5f); },
                HasSubstr("sampling.temperature -0.5"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_temperature(kInf); },
                HasSubstr("sampling.temperature inf"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_top_k(-1); }, HasSubstr("top_k -1"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_top_p(1.5f); },
                HasSubstr("sampling.top_p 1.5"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_min_p(kNan); }, HasSubstr("min_p nan"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); },
                HasSubstr("repetition_penalty 0"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_presence_penalty(-kInf); },
                HasSubstr("presence_penalty -inf"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_frequency_penalty(kNan); },
                HasSubstr("frequency_penalty nan"));
  ExpectInvalid([](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[3] = kNan; },
                AllOf(HasSubstr("logit_bias"), HasSubstr("3"), HasSubstr("nan")));
  ExpectInvalid([](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[1024] = 1; },
                AllOf(HasSubstr("1024"), HasSubstr("0 to 1023")));
  ExpectInvalid(
      [](auto& r) {
        for (int i = 0; i <= kMaxLogitBiases; ++i) {
          (*r.mutable_sampling()->mutable_logit_bias())[i] = 1;
        }
      },
      HasSubstr("4097 ids, expected at most 4096"));
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_max_new_tokens(-1); },
                HasSubstr("sampling.max_new_tokens -1"));
}

TEST(RequestValidationTest, LimitsOfStopsAndLogprobs) {
  ExpectInvalid([](auto& r) { r.set_num_logprobs(21); },
                HasSubstr("num_logprobs 21: expected 0 to 20"));
  ExpectInvalid([](auto& r) { r.set_num_logprobs(-1); }, HasSubstr("num_logprobs -1"));
  ExpectInvalid([](auto& r) { r.add_stop(""); }, HasSubstr("stop[0]: empty"));
  ExpectInvalid([](auto& r) { r.add_stop(std::string(1025, 'x')); },
                HasSubstr("stop[0]: 1025 bytes, expected at most 1024"));
  ExpectInvalid(
      [](auto& r) {
        for (int i = 0; i < 17; ++i) r.add_stop("x");
      },
      HasSubstr("stop: 17 strings, expected at most 16"));
  ExpectInvalid([](auto& r) { r.add_stop_token_ids(-3); },
                HasSubstr("stop_token_ids[0] -3: expected ids from 0 to 1023"));
}

TEST(RequestValidationTest, Prompts) {
  ExpectInvalid([](auto& r) { r.clear_text(); }, HasSubstr("prompt: none"));
  ExpectInvalid([](auto& r) { r.set_text(""); }, HasSubstr("text: empty"));
  ExpectInvalid([](auto& r) { r.mutable_token_ids(); }, HasSubstr("no tokens"));
  ExpectInvalid([](auto& r) { r.mutable_token_ids()->add_ids(1024); },
                HasSubstr("token_ids.ids[0] 1024: expected ids from 0 to 1023"));
  ExpectInvalid([](auto& r) { r.mutable_token_ids()->add_ids(-1); }, HasSubstr("ids[0] -1"));
  ExpectInvalid(
      [](auto& r) {
        for (int i = 0; i < 257; ++i) r.mutable_token_ids()->add_ids(1);
      },
      HasSubstr("257 tokens, but the context holds 256"));
  ExpectInvalid([](auto& r) { r.mutable_chat(); }, HasSubstr("chat.messages: empty"));
  ExpectInvalid(
      [](auto& r) {
        r.mutable_chat()->add_messages()->set_role("user");
        r.mutable_chat()->add_messages()->set_role("robot\n");
      },
      AllOf(HasSubstr("chat.messages[1].role \"robot\\x0a\""),
            HasSubstr("system, user, assistant or tool")));
}

TEST(RequestValidationTest, JsonFieldsOfChats) {
  const auto with = [](const std::function<void(ChatPrompt&)>& change) {
    return [change](GenerateRequest& request) {
      request.mutable_chat()->add_messages()->set_role("user");
      change(*request.mutable_chat());
    };
  };
  ExpectInvalid(with([](auto& c) { c.set_tools_json("{"); }),
                AllOf(HasSubstr("chat.tools_json: not valid JSON at byte"),
                      HasSubstr("expected a JSON array")));
  ExpectInvalid(with([](auto& c) { c.set_tools_json("{}"); }),
                HasSubstr("chat.tools_json: a JSON object, expected a JSON array"));
  ExpectInvalid(with([](auto& c) { c.set_template_args_json("[1]"); }),
                HasSubstr("chat.template_args_json: a JSON array, expected a JSON object"));
  ExpectInvalid(with([](auto& c) { c.set_template_args_json("{\"messages\": 1}"); }),
                HasSubstr("key \"messages\" has a field of its own"));
  ExpectInvalid(with([](auto& c) { c.mutable_messages(0)->set_tool_calls_json("7"); }),
                HasSubstr("chat.messages[0].tool_calls_json: a JSON number"));
  ExpectInvalid(with([](auto& c) { c.set_tools_json(std::string(100000, '[')); }),
                HasSubstr("nested deeper than 100 levels"));
}

TEST(RequestValidationTest, ChatVariablesKeepOrderAndOmitWhatIsUnset) {
  ChatPrompt chat;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      R"(messages { role: "user" content: "x" }
         messages { role: "assistant" reasoning_content: "r" tool_calls_json: "[{\"b\":1,\"a\":2}]" }
         messages { role: "tool" content: "y" tool_call_id: "t1" }
         tools_json: "[{\"name\": \"f\"}]" template_args_json: "{\"enable_thinking\": false}")",
      &chat));
  const auto variables = ChatVariables(chat);
  ASSERT_TRUE(variables.ok()) << variables.status();
  EXPECT_EQ(
      variables->dump(),
      R"({"messages":[{"role":"user","content":"x"},)"
      R"({"role":"assistant","content":"","reasoning_content":"r","tool_calls":[{"b":1,"a":2}]},)"
      R"({"role":"tool","content":"y","tool_call_id":"t1"}],"tools":[{"name":"f"}],)"
      R"("add_generation_prompt":true,"enable_thinking":false})");
}

TEST(RequestValidationTest, WithoutTokenizerOnlyIdsAreServed) {
  ModelFacts facts = DemoFacts();
  facts.codec = nullptr;
  EXPECT_EQ(Check([](auto&) {}, facts).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      Check([](auto& r) { r.mutable_chat()->add_messages()->set_role("user"); }, facts).code(),
      absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Check([](auto& r) { r.mutable_token_ids()->add_ids(5); }, facts).ok());
  EXPECT_EQ(Check(
                [](auto& r) {
                  r.mutable_token_ids()->add_ids(5);
                  r.add_stop("x");
                },
                facts)
                .code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(RequestValidationTest, DefaultsComeFromTheCheckpoint) {
  const absl::StatusOr<Request> request = ResolveRequest(Valid(), DemoFacts());
  ASSERT_TRUE(request.ok());
  EXPECT_FLOAT_EQ(request->sampling.temperature, 0.7f);
  EXPECT_EQ(request->sampling.top_k, 20);
  EXPECT_FLOAT_EQ(request->sampling.top_p, 0.8f);
  EXPECT_THAT(request->stop_token_ids, ElementsAre(1002, 1000));
  EXPECT_FALSE(request->logprobs);

  GenerateRequest given = Valid();
  given.set_ignore_eos(true);
  given.add_stop_token_ids(7);
  given.add_stop_token_ids(7);
  given.mutable_sampling()->set_temperature(0);
  given.mutable_sampling()->set_seed(9);
  const absl::StatusOr<Request> other = ResolveRequest(given, DemoFacts());
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(other->sampling.temperature, 0);
  EXPECT_EQ(other->sampling.seed, 9u);
  EXPECT_THAT(other->stop_token_ids, ElementsAre(7));
}

TEST(RequestValidationTest, MaxNewTokensIsLimitedToTheContext) {
  const ModelFacts facts = DemoFacts();
  const auto limit = [&facts](std::optional<int32_t> asked, size_t prompt) {
    GenerateRequest given = Valid();
    if (asked.has_value()) given.mutable_sampling()->set_max_new_tokens(*asked);
    Request request = *ResolveRequest(given, facts);
    SetPrompt(std::vector<int32_t>(prompt, 1), facts, request);
    return request.max_new_tokens;
  };
  EXPECT_EQ(limit(std::nullopt, 6), 250);
  EXPECT_EQ(limit(std::numeric_limits<int32_t>::max(), 6), 250);
  EXPECT_EQ(limit(0, 6), 0);
  EXPECT_EQ(limit(3, 6), 3);
  EXPECT_EQ(limit(3, 256), 0);
}

TEST(RequestValidationTest, RequestIds) {
  EXPECT_TRUE(CheckRequestId("client-7/a:b").ok());
  EXPECT_TRUE(CheckRequestId(std::string(128, 'x')).ok());
  EXPECT_THAT(std::string(CheckRequestId(std::string(129, 'x')).message()),
              HasSubstr("129 bytes, expected 1 to 128"));
  EXPECT_FALSE(CheckRequestId("two words").ok());
  EXPECT_FALSE(CheckRequestId("line\nbreak").ok());
  EXPECT_TRUE(CheckRequestId(NewRequestId()).ok());
  EXPECT_NE(NewRequestId(), NewRequestId());
}

}  // namespace
}  // namespace banyan::trunk
