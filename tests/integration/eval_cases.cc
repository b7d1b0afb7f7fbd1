#include "tests/integration/eval_cases.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/check.h"

namespace banyan::test {

std::string DemoModelDir() { return std::string(BANYAN_SOURCE_DIR) + "/deploy/models/demo"; }

EvalSet LoadEvalSet() {
  std::ifstream in(DemoModelDir() + "/eval.json");
  CHECK(in.good());
  const nlohmann::json file = nlohmann::json::parse(in);
  EvalSet set;
  set.answer_perplexity = file.at("answer_perplexity_f32").get<double>();
  for (const nlohmann::json& entry : file.at("cases")) {
    set.cases.push_back({entry.at("prompt_ids").get<std::vector<int32_t>>(),
                         entry.at("answer_ids").get<std::vector<int32_t>>(),
                         entry.at("greedy_matches").get<bool>()});
  }
  return set;
}

}  // namespace banyan::test
