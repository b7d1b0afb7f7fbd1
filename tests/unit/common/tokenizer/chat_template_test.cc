#include "common/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace banyan {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

// Rendered text with what stems from users in brackets.
std::string Marked(std::string_view source, const Json& variables) {
  const auto chat_template = ChatTemplate::Create(source, "t");
  if (!chat_template.ok()) return chat_template.status().ToString();
  const auto spans = (*chat_template)->Render(variables);
  if (!spans.ok()) return spans.status().ToString();
  std::string text;
  for (const RenderedSpan& span : *spans) {
    text += span.user_text ? "[" + span.text + "]" : span.text;
  }
  return text;
}

TEST(ChatTemplateTest, RemembersWhatUsersWrote) {
  const Json v = {{"u", " abc</a>DEF "},
                  {"l", Json::array({"x", "y"})},
                  {"d", Json::object({{"k", "w"}})},
                  {"n", 5}};
  EXPECT_EQ(Marked("<{{ u }}>", v), "<[ abc</a>DEF ]>");
  EXPECT_EQ(Marked("{{ '<' + u.strip() + '>' }}", v), "<[abc</a>DEF]>");
  EXPECT_EQ(Marked("{{ ('<' ~ u ~ '>')[3:7] }}", v), "[bc</]");
  EXPECT_EQ(Marked("{{ ('<' ~ u | trim ~ '>')[::-1] }}", v), ">[FED>a/<cba]<");
  EXPECT_EQ(Marked("{{ (u ~ '|end').split('</a>')[-1] }}", v), "[DEF ]|end");
  EXPECT_EQ(Marked("{{ (u ~ 'end').strip() | upper }}", v), "[ABC</A>DEF ]END");
  EXPECT_EQ(Marked("{{ u.replace('</a>', '</b>') }}", v), "[ abc]</b>[DEF ]");
  EXPECT_EQ(Marked("{{ 'a-b'.replace('-', u) }}", v), "a[ abc</a>DEF ]b");
  EXPECT_EQ(Marked("{{ l | join(', ') }}", v), "[x], [y]");
  EXPECT_EQ(Marked("{{ ', '.join(l) }}", v), "[x], [y]");
  EXPECT_EQ(Marked("{{ {'a': 'b'} | tojson }}", v), "[{\"a\": \"b\"}]");
  EXPECT_EQ(Marked("{{ ['a'] }}", v), "[['a']]");
  EXPECT_EQ(Marked("{% for k, x in d.items() %}{{ k }}={{ x }}{% endfor %}", v), "[k]=[w]");
  EXPECT_EQ(Marked("{% set ns = namespace(t='<') %}{% set ns.t = ns.t + u %}{{ ns.t }}", v),
            "<[ abc</a>DEF ]");
  EXPECT_EQ(Marked("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(u) }}", v), "<[ abc</a>DEF ]>");
  EXPECT_EQ(Marked("{% set b %}<{{ u }}>{% endset %}{{ b }}", v), "<[ abc</a>DEF ]>");
  EXPECT_EQ(Marked("{{ u | indent(2, true) }}", v), "  [ abc</a>DEF ]");
  EXPECT_EQ(Marked("{% for c in 'a' + l[0] %}{{ c }}{% endfor %}{{ n }}", v), "a[x]5");
}

TEST(ChatTemplateTest, ConstantsAreTrusted) {
  const auto chat_template =
      ChatTemplate::Create("{{ eos_token }}{{ x }}", "t", {{"eos_token", "</s>"}});
  ASSERT_TRUE(chat_template.ok());
  const auto spans = (*chat_template)->Render({{"x", "</s>"}});
  ASSERT_TRUE(spans.ok());
  ASSERT_EQ(spans->size(), 2u);
  EXPECT_FALSE((*spans)[0].user_text);
  EXPECT_TRUE((*spans)[1].user_text);
}

TEST(ChatTemplateTest, NamesUnsupportedConstructsWithTheirLine) {
  const auto unsupported = [](std::string_view source) {
    const auto made = ChatTemplate::Create(source, "chat.jinja");
    EXPECT_EQ(made.status().code(), absl::StatusCode::kUnimplemented) << source << made.status();
    return std::string(made.status().message());
  };
  EXPECT_EQ(unsupported("\n\n{{ x | urlize }}"),
            "chat.jinja: line 3: filter 'urlize' is not supported");
  EXPECT_EQ(unsupported("{% include 'x' %}"), "chat.jinja: line 1: tag 'include' is not supported");
  EXPECT_EQ(unsupported("a\n{% raw %}"), "chat.jinja: line 2: tag 'raw' is not supported");
  EXPECT_EQ(unsupported("{{ x.format(1) }}"),
            "chat.jinja: line 1: method 'format' is not supported");
  EXPECT_EQ(unsupported("{{ x is filter }}"), "chat.jinja: line 1: test 'filter' is not supported");
  EXPECT_EQ(unsupported("{{\nstrftime_now('%d') }}"),
            "chat.jinja: line 2: function 'strftime_now' is not supported");
  EXPECT_THAT(unsupported("{{ 2 ** 3 }}"), HasSubstr("operator **"));
  EXPECT_THAT(unsupported("{% for x in y recursive %}{% endfor %}"), HasSubstr("recursive"));
  EXPECT_THAT(unsupported("{{ f(*x) }}"), HasSubstr("argument lists with *"));
  EXPECT_THAT(unsupported("{% if 1 %}{% macro f() %}{% endmacro %}{% endif %}"),
              HasSubstr("macro inside another block"));
}

TEST(ChatTemplateTest, NamesSyntaxErrorsWithTheirLine) {
  const auto invalid = [](std::string_view source) {
    const auto made = ChatTemplate::Create(source, "c");
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument) << source << made.status();
    return std::string(made.status().message());
  };
  EXPECT_EQ(invalid("{% if x %}\n"), "c: line 1: 'if' without its end, expected {% endif %}");
  EXPECT_EQ(invalid("\n{% endif %}"), "c: line 2: unexpected tag 'endif'");
  EXPECT_EQ(invalid("{{ 1 + }}"), "c: line 1: expected an expression, found '}}'");
  EXPECT_EQ(invalid("{{ 'abc }}"), "c: line 1: string without an end");
  EXPECT_EQ(invalid("x\n{{ (1 }}"), "c: line 2: unexpected '}'");
  EXPECT_EQ(invalid("{{ 1 "), "c: line 1: tag without an end, expected }}");
  EXPECT_EQ(invalid("{# x"), "c: line 1: comment without an end, expected #}");
  EXPECT_EQ(invalid("{{ ? }}"), "c: line 1: unexpected character '?'");
  EXPECT_EQ(invalid("{% break %}"), "c: line 1: 'break' outside a for loop");
  EXPECT_EQ(invalid("{% set true = 1 %}"), "c: line 1: 'true' cannot be assigned to");
  EXPECT_EQ(invalid("\xFF"), "c: not valid UTF-8");
  EXPECT_THAT(invalid("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + "}}"),
              HasSubstr("nests deeper"));
  std::string blocks;
  for (int i = 0; i < 5000; ++i) blocks += "{% if 1 %}";
  EXPECT_THAT(invalid(blocks), HasSubstr("nest deeper"));
  std::string chain = "{{ 1";
  for (int i = 0; i < 5000; ++i) chain += "+1";
  EXPECT_THAT(invalid(chain + "}}"), HasSubstr("nests deeper"));
}

TEST(ChatTemplateTest, ErrorsOfRenderingNameTheLine) {
  const Json v = {{"s", "x"}, {"none", nullptr}, {"l", Json::array({1})}};
  EXPECT_EQ(Marked("\n{{ raise_exception('roles must ' ~ 'alternate') }}", v),
            "INVALID_ARGUMENT: t: line 2: roles must alternate");
  EXPECT_EQ(Marked("{{ s + 1 }}", v),
            "INVALID_ARGUMENT: t: line 1: can only concatenate str (not \"int\") to str");
  EXPECT_EQ(Marked("{{ a.b }}", v), "INVALID_ARGUMENT: t: line 1: 'a' is undefined");
  EXPECT_EQ(Marked("{{ s + a }}", v), "INVALID_ARGUMENT: t: line 1: 'a' is undefined");
  EXPECT_EQ(Marked("{{ 1 // 0 }}", v), "INVALID_ARGUMENT: t: line 1: division by zero");
  EXPECT_EQ(Marked("{% for x in 5 %}{% endfor %}", v),
            "INVALID_ARGUMENT: t: line 1: 'int' object is not iterable");
  EXPECT_EQ(Marked("{{ l.startswith('x') }}", v),
            "INVALID_ARGUMENT: t: line 1: 'list object' has no attribute 'startswith'");
  EXPECT_EQ(Marked("{{ a | tojson }}", v),
            "INVALID_ARGUMENT: t: line 1: Object of type Undefined is not JSON serializable");
}

TEST(ChatTemplateTest, BoundsWorkMemoryAndRecursion) {
  const Json v = {{"s", std::string(1000, 'x')}};
  const auto expect = [&](std::string_view source, const char* message) {
    EXPECT_THAT(Marked(source, v), HasSubstr(message)) << source;
  };
  expect("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
         "RESOURCE_EXHAUSTED: t: line 1: more than 10000000 steps");
  expect(
      "{% set n = namespace(s=s) %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
      "RESOURCE_EXHAUSTED");
  expect("{{ 'a' * 99999999999 }}", "RESOURCE_EXHAUSTED");
  expect("{% for a in range(20000) %}{{ s }}{% endfor %}", "bytes of output");
  expect("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper than");
  expect("{% set n = namespace(l=[]) %}{% for a in range(500) %}{% set n.l = [n.l] %}{% endfor %}",
         "lists nest deeper");
  expect(
      "{% set n = namespace(l=[1]) %}{% for a in range(50) %}{% set n.l = [n.l, n.l] %}{% endfor "
      "%}{{ n.l | tojson }}",
      "RESOURCE_EXHAUSTED");
  expect("{% set n = namespace() %}{% set n.n = n %}", "cannot be put in a namespace");
  Json deep = 1;
  for (int i = 0; i < 200; ++i) {
    Json outer = Json::array();
    outer.push_back(std::move(deep));
    deep = std::move(outer);
  }
  Json variables = Json::object();
  variables["deep"] = std::move(deep);
  EXPECT_THAT(Marked("x", variables), HasSubstr("nest deeper than 100 levels"));
}

TEST(ChatTemplateTest, InvalidUtf8InVariablesIsReplaced) {
  EXPECT_EQ(Marked("{{ u }}", {{"u", "a\xFF"}}), "[a\xEF\xBF\xBD]");
}

TEST(ChatTemplateTest, LoadNamesWhatIsMissing) {
  EXPECT_EQ(ChatTemplate::Load("/nonexistent").status().code(), absl::StatusCode::kNotFound);
  const auto demo = ChatTemplate::Load(std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo");
  EXPECT_TRUE(demo.ok()) << demo.status();
}

}  // namespace
}  // namespace banyan
