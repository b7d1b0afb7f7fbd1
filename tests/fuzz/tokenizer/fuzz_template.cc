// The first byte selects: a template's source over fixed variables, or fixed templates over
// variables from untrusted JSON. Either must render, or refuse, within its bounds; what comes from
// variables must be marked so.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "common/tokenizer/chat_template.h"
#include "common/tokenizer/utf8.h"

namespace {

using Json = nlohmann::ordered_json;
using banyan::ChatTemplate;

// Every string that a variable holds consists of letters no template of ours prints by itself.
constexpr std::string_view kVariables = R"({
  "messages": [{"role": "ZZ", "content": "ZZZ ZZ"}, {"role": "Z", "content": "  ZZZZ\n",
    "tool_calls": [{"function": {"name": "Z", "arguments": {"Z": 1.5, "ZZ": [true, null, -7]}}}]}],
  "tools": [{"type": "Z", "function": {"name": "ZZ", "parameters": {"properties": {"Z": {}}}}}],
  "add_generation_prompt": true})";

constexpr std::string_view kTemplates[] = {
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' "
    "}}{%- endif %}",
    "{%- macro show(d, skip) %}{%- for k, v in d | items if k not in skip %}{{ '<' ~ k ~ '>' ~ (v "
    "| tojson if v is mapping else v | string) }}{%- endfor %}{%- endmacro %}{%- set ns = "
    "namespace(last=messages | length - 1) %}{%- for m in messages[::-1] %}{%- if m.role == 'user' "
    "and not (m.content.startswith('<a>') and m.content.endswith('</a>')) %}{%- set ns.last = "
    "loop.index0 %}{%- endif %}{{ show(m, ['role']) }}{{ m.content.split('</think>')[-1].lstrip() "
    "| trim }}{{ loop.previtem.role if not loop.first }}{% endfor %}{{ tools | tojson(indent=2) "
    "}}{{ messages }}{{ ns.last }}",
};

void Render(const ChatTemplate& chat_template, const Json& variables) {
  const auto spans = chat_template.Render(variables);
  if (!spans.ok()) return;
  for (size_t i = 0; i < spans->size(); ++i) {
    const banyan::RenderedSpan& span = (*spans)[i];
    CHECK(!span.text.empty());
    CHECK(banyan::IsValidUtf8(span.text));
    CHECK(i == 0 || (*spans)[i - 1].user_text != span.user_text);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    static const Json variables = Json::parse(kVariables);
    const auto chat_template = ChatTemplate::Create(input, "fuzz");
    if (chat_template.ok()) Render(**chat_template, variables);
    return 0;
  }
  const Json variables = Json::parse(input, nullptr, /*allow_exceptions=*/false);
  if (variables.is_discarded()) return 0;
  for (const std::string_view source : kTemplates) {
    static_assert(std::size(kTemplates) == 2);
    const auto chat_template = ChatTemplate::Create(source, "fixed");
    CHECK(chat_template.ok());
    Render(**chat_template, variables);
  }
  return 0;
}
