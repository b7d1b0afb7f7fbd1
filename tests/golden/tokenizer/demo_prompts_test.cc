// The demo model's prompts: rendering its conversations with its own template and encoding them
// gives the ids it was trained and evaluated with.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/tokenizer/text_codec.h"

namespace banyan {
namespace {

using Json = nlohmann::ordered_json;

TEST(DemoPromptsTest, EveryConversationGivesItsPromptIds) {
  const std::string directory = std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo";
  const auto codec = TextCodec::Load(directory);
  ASSERT_TRUE(codec.ok()) << codec.status();
  std::ifstream in(directory + "/eval.json");
  const Json eval = Json::parse(in);
  ASSERT_EQ(eval["cases"].size(), 240u);
  for (const auto& one : eval["cases"]) {
    const auto chat =
        (*codec)->RenderChat({{"messages", one["messages"]}, {"add_generation_prompt", true}});
    ASSERT_TRUE(chat.ok()) << chat.status();
    EXPECT_EQ(chat->ids, one["prompt_ids"].get<std::vector<int32_t>>()) << chat->text;
    // The answer's ids decode to the answer, its end token aside.
    EXPECT_EQ((*codec)->tokenizer().Decode(one["answer_ids"].get<std::vector<int32_t>>(),
                                           /*skip_special=*/true),
              one["answer"].get<std::string>());
  }
}

}  // namespace
}  // namespace banyan
