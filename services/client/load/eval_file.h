// A file of prompts with known answers (deploy/models/demo/eval.json), and how well a server meets
// it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/client/load/load_run.h"

namespace banyan::client {

struct EvalCase {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> answer_ids;
  bool has_one_answer = true;  // "greedy_matches": the answer is what greedy decoding must give
};

// {"cases": [{"prompt_ids": [...], "answer_ids": [...], "greedy_matches": true}, ...]}; other keys
// are ignored. kInvalidArgument names the case.
absl::StatusOr<std::vector<EvalCase>> LoadEvalFile(const std::string& path);

// The request whose greedy answer is compared with the case's, and the one that scores the case's
// answer (log-probabilities of prompt and answer as one prompt).
inference::v1::GenerateRequest AnswerRequest(const EvalCase& eval_case);
inference::v1::GenerateRequest ScoreRequest(const EvalCase& eval_case);

// Whether the two say the same, an end token at the end of either aside.
bool SameAnswer(const std::vector<int32_t>& expected, const std::vector<int32_t>& found,
                const std::vector<int32_t>& eos_token_ids);

struct EvalScore {
  int64_t num_cases = 0;
  int64_t num_one_answer = 0;
  int64_t num_exact = 0;            // of those with one answer
  std::vector<int64_t> mismatches;  // their indices
  int64_t num_answer_tokens = 0;
  double perplexity = 0;  // exp of the mean negative log-probability of an answer token
};

// kInternal when a successful outcome lacks records. Outcomes that failed count as mismatches; when
// a scoring request failed its status is returned.
absl::StatusOr<EvalScore> ScoreEval(const std::vector<EvalCase>& cases,
                                    const std::vector<int32_t>& eos_token_ids,
                                    const std::vector<LoadOutcome>& answers,
                                    const std::vector<LoadOutcome>& scores);

}  // namespace banyan::client
