// Single constructs of the template language. The expected texts are what Jinja 3.1 prints
// (trim_blocks and lstrip_blocks on, `tojson` as transformers defines it).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "common/tokenizer/chat_template.h"

namespace banyan {
namespace {

constexpr const char* kVariables =
    R"json({"s": "  Grüße, 'Welt' \n", "l": [3, "b", null, true, 2.0], "d": {"k": "v", "items": 1, "n": {"x": []}}, "i": 7, "f": 0.1, "none": null, "m": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]})json";

struct Case {
  const char* source;
  const char* rendered;
};

const Case kCases[] = {
    {"{{ 1 + 2 * 3 - 4 // 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 1e16 }} {{ 1.5e-7 }} {{ "
     "0.0001 }} {{ 123456789.125 }}",
     "6 -4 2 3.5 1e+16 1.5e-07 0.0001 123456789.125"},
    {"{{ l }} {{ d }} {{ (1,) }} {{ (1, 2) }} {{ none }} {{ true }} {{ undefinedname }}",
     "[3, 'b', None, True, 2.0] {'k': 'v', 'items': 1, 'n': {'x': []}} (1,) (1, 2) None True "},
    {"{{ l | tojson }} {{ d | tojson }} {{ s | tojson }} {{ d | tojson(indent=2) }} {{ [] | "
     "tojson(indent=2) }}",
     "[3, \"b\", null, true, 2.0] {\"k\": \"v\", \"items\": 1, \"n\": {\"x\": []}} \"  "
     "Gr\303\274\303\237e, 'Welt' \\n\" {\n  \"k\": \"v\",\n  \"items\": 1,\n  \"n\": {\n    "
     "\"x\": []\n  }\n} []"},
    {"{{ \"\303\251<>&'\\\"\\\\\\x07\" | tojson }} {{ \"\303\251\360\237\231\202\" | "
     "tojson(ensure_ascii=true) }}",
     "\"\303\251<>&'\\\"\\\\\\u0007\" \"\\u00e9\\ud83d\\ude42\""},
    {"{{ s | trim }}|{{ s | upper }}|{{ s | lower }}|{{ s | length }}|{{ '\303\251a' | capitalize "
     "}}",
     "Gr\303\274\303\237e, 'Welt'|  GR\303\234SSE, 'WELT' \n|  gr\303\274\303\237e, 'welt' "
     "\n|17|\303\211a"},
    {"{{ s.strip().split(' ') }} {{ 'a,b,,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b c "
     "'.split() }} {{ ' a  b c '.split(none, 1) }}",
     "['Gr\303\274\303\237e,', \"'Welt'\"] ['a', 'b', '', 'c'] ['a', 'b,c'] ['a', 'b', 'c'] ['a', "
     "'b c ']"},
    {"{{ 'xxabxx'.strip('x') }} {{ 'xxabxx'.lstrip('x') }} {{ 'xxabxx'.rstrip('xb') }} {{ "
     "'ab'.startswith(('x', 'a')) }} {{ 'ab'.endswith('b') }}",
     "ab abxx xxa True True"},
    {"{{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[::2] }} {{ "
     "'gr\303\274\303\237e'[2] }} {{ l[1:3] }} {{ l[::-1] }} {{ l[10:] }} {{ 'abc'[5] }} {{ l[-1] "
     "}}",
     "bcd fedcba ef ace \303\274 ['b', None] [2.0, True, None, 'b', 3] []  2.0"},
    {"{{ d.k }} {{ d['k'] }} {{ d.items() | list }} {{ d['items'] }} {{ d.get('zz', 5) }} {{ "
     "d.get('zz') }} {{ d.keys() | list }} {{ d | items | list }} {{ d.n.x }} {{ d.zz is defined "
     "}} {{ d.items is defined }}",
     "v v [('k', 'v'), ('items', 1), ('n', {'x': []})] 1 5 None ['k', 'items', 'n'] [('k', 'v'), "
     "('items', 1), ('n', {'x': []})] [] False True"},
    {"{{ 'a' in 'cat' }} {{ 'k' in d }} {{ 3 in l }} {{ 3.0 in l }} {{ none not in l }} {{ 'z' not "
     "in 'abc' }} {{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ 'a' != 'b' }}",
     "True True True True False True True False True True"},
    {"{{ not s }} {{ s and i }} {{ '' or 'x' }} {{ none or 0 }} {{ 'y' if i > 5 else 'n' }} {{ 'y' "
     "if i > 50 }} {{ not i is defined }}",
     "False 7 x 0 y  False"},
    {"{{ i is number }} {{ i is string }} {{ s is iterable }} {{ d is mapping }} {{ l is sequence "
     "}} {{ none is none }} {{ x is undefined }} {{ i is odd }} {{ i is divisibleby 7 }} {{ i is "
     "not none }} {{ true is integer }} {{ f is float }} {{ i is eq 7 }} {{ 'a' is in ['a'] }} {{ "
     "'A' is upper }} {{ true is true }} {{ x is iterable }} {{ none is iterable }}",
     "True False True True True True True True True True False True True True True True True "
     "False"},
    {"{{ 'a' ~ 1 ~ none ~ [1] ~ x }} {{ 'a' * 3 }} {{ [1] * 2 + [2] }} {{ 'a' 'b' }}",
     "a1None[1] aaa [1, 1, 2] ab"},
    {"{{ x | default('d') }} {{ '' | default('d', true) }} {{ none | default('d') }} {{ l | "
     "join('-') }} {{ m | map(attribute='role') | join(', ') }} {{ m | selectattr('role', "
     "'equalto', 'user') | list | length }} {{ m | rejectattr('role', 'equalto', 'user') | "
     "map(attribute='content') | list }} {{ ['a', '', 'b'] | select | list }} {{ ['a', 'b'] | "
     "map('upper') | list }}",
     "d d None 3-b-None-True-2.0 user, tool 1 ['b'] ['a', 'b'] ['A', 'B']"},
    {"{{ 'hello'.replace('l', 'L') }} {{ 'hello'.replace('l', 'L', 1) }} {{ 'hello' | replace('h', "
     "'j') }} {{ 'a\\nb\\r\\nc'.splitlines() }} {{ 'hello'.find('l') }} {{ 'hello'.count('l') }} "
     "{{ ', '.join(['a', 'b']) }} {{ 'abc'.removeprefix('a') }}",
     "heLLo heLlo jello ['a', 'b', 'c'] 2 2 a, b bc"},
    {"{{ '12' | int + 1 }} {{ 'x' | int }} {{ 'x' | int(-1) }} {{ 3.99 | int }} {{ '2.5' | float "
     "}} {{ -3 | abs }} {{ l | first }} {{ l | last }} {{ [] | first }} {{ 'abc' | reverse }} {{ "
     "[1, 2] | reverse | list }} {{ 'a\\n\\nb' | indent(2) }} {{ 'a\\nb' | indent(2, true) }}",
     "13 0 -1 3 2.5 3 3 2.0  cba [2, 1] a\n\n  b   a\n  b"},
    {"{{ range(5) | list }} {{ range(5, 1, -2) | list }} {{ dict(a=1, b='x') }} {{ {'a': 1, 'a': "
     "2} }} {{ \"it's\" ~ ['it\\'s', 'q\"', '\303\251\\u200b\\x01'] }}",
     "[0, 1, 2, 3, 4] [5, 3] {'a': 1, 'b': 'x'} {'a': 2} it's[\"it's\", 'q\"', "
     "'\303\251\\u200b\\x01']"},
    {"{% for a in m %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ "
     "loop.last }}{{ loop.length }}{{ loop.previtem.role if not loop.first }}{{ loop.nextitem.role "
     "if not loop.last }}{{ loop.previtem }};{% endfor %}",
     "102TrueFalse2tool;211FalseTrue2user{'role': 'user', 'content': 'a'};"},
    {"{% for k, v in d.items() %}{{ k }}={{ v }},{% else %}none{% endfor %}{% for k in d if k != "
     "'k' %}{{ loop.length }}{{ k }}{% endfor %}{% for z in [] %}x{% else %}empty{% endfor %}",
     "k=v,items=1,n={'x': []},2items2nempty"},
    {"{% set q = 1 %}{% for z in [1, 2] %}{{ q }}{% set q = 5 %}{{ q }}{% endfor %}{{ q }}{% if "
     "true %}{% set q = 9 %}{% endif %}{{ q }}",
     "151519"},
    {"{% set ns = namespace(n=0, t='') %}{% for z in [1, 2, 3] %}{% if z == 2 %}{% continue %}{% "
     "endif %}{% set ns.n = ns.n + z %}{% endfor %}{{ ns.n }}{% for z in [1, 2, 3] %}{% if z == 2 "
     "%}{% break %}{% endif %}{{ z }}{% endfor %}",
     "41"},
    {"{% set a, b = [1, 2] %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}{% set body %}<{{ a }}>{% "
     "endset %}{{ body | length }}{{ body }}",
     "12(1, 2)3<1>"},
    {"{% macro m1(a, b='d', c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m1(1) }}{{ m1(1, 2) "
     "}}{{ m1(1, c=3) }}{{ m1() }}{{ m1(b=2, a=5) ~ 'x' }}",
     "[1d1][121][1d3][d][525]x"},
    {"{% for a in [1, 2] %}{% for b in [1, 2] %}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}{% "
     "endfor %}",
     "10101010"},
    {"a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
    {"  {%- if true -%}  \n x {%- endif -%}\n y", "xy"},
    {"{{ 1 }}\n{{ 2 }}\n\n", "1\n2\n"},
    {"  {# c #}\n  {#- d -#}  \ne", "e"},
    {"x {%+ if true %} y {% endif +%}\nz", "x  y \nz"},
    {"  {{ 1 }}  {% if 1 %}\n\n{% endif %}  \n", "  1  \n  "},
    {"a\r\nb\rc\r\n", "a\nb\nc"},
    {"{% if 1 %}\n  {% set x = 2 %}\n  {{ x }}\n{% endif %}\n", "  2\n"},
    {"{{ {'a': {'b': 1}}['a'] }}{{ '}}' }}{{ '%}' }}", "{'b': 1}}}%}"},
    {"{%if 1%}a{%elif 2%}b{%else%}c{%endif%}{%- for i in [1,2] -%} {{i}} {%- endfor %}", "a12"},
    {"{{- 1 -}}  \n x", "1x"},
    {"{{ \"\\u00e9\\x41\\t\\q\\101\" }}", "\303\251A\t\\qA"},
    {"a {%- set x = 1 %} b", "a b"},
    {"\n\n{% set a=1 %}\n\n", "\n\n"},
};

TEST(JinjaExpressionsTest, RenderAsJinjaDoes) {
  const auto variables = nlohmann::ordered_json::parse(kVariables);
  for (const Case& one : kCases) {
    const auto chat_template = ChatTemplate::Create(one.source, "case");
    ASSERT_TRUE(chat_template.ok()) << one.source << "\n" << chat_template.status();
    const auto spans = (*chat_template)->Render(variables);
    ASSERT_TRUE(spans.ok()) << one.source << "\n" << spans.status();
    std::string text;
    for (const RenderedSpan& span : *spans) text += span.text;
    EXPECT_EQ(text, one.rendered) << one.source;
  }
}

}  // namespace
}  // namespace banyan
