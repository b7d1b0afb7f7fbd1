// The demo model's held-out conversations (deploy/models/demo/eval.json).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace banyan::test {

struct EvalCase {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> answer_ids;  // ends with the end token
  bool single_answer = false;       // greedy decoding must give answer_ids exactly
};

struct EvalSet {
  std::vector<EvalCase> cases;
  double answer_perplexity = 0;  // of all answer tokens, f32 reference
};

std::string DemoModelDir();
EvalSet LoadEvalSet();

}  // namespace banyan::test
