// Qwen's chat templates against renderings by transformers' own Jinja environment, and the demo
// model's prompts.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "common/tokenizer/chat_template.h"
#include "common/tokenizer/text_codec.h"

namespace banyan {
namespace {

using Json = nlohmann::ordered_json;

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(TemplateCasesTest, EveryCaseRendersAsTheReference) {
  const std::string directory = std::string(BANYAN_REFERENCE_DATA) + "/chat-templates/";
  const Json cases = Json::parse(ReadText(directory + "cases.json"));
  ASSERT_EQ(cases.size(), 270u);
  std::map<std::string, std::unique_ptr<ChatTemplate>> templates;
  int num_failed = 0;
  for (const auto& one : cases) {
    const auto name = one["template"].get<std::string>();
    if (templates.count(name) == 0) {
      const std::string path = name == "demo" ? std::string(BANYAN_SOURCE_DIR) +
                                                    "/deploy/models/demo/chat_template.jinja"
                                              : directory + name;
      auto loaded = ChatTemplate::Create(ReadText(path), name);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      templates[name] = *std::move(loaded);
    }
    const auto spans = templates[name]->Render(one["input"]);
    ASSERT_TRUE(spans.ok()) << spans.status();
    std::string text;
    for (const RenderedSpan& span : *spans) text += span.text;
    if (text != one["rendered"].get<std::string>()) {
      ++num_failed;
      EXPECT_EQ(text, one["rendered"].get<std::string>()) << one["input"].dump();
    }
  }
  EXPECT_EQ(num_failed, 0) << "of " << cases.size();
}

}  // namespace
}  // namespace banyan
