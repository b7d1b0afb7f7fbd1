// What a running cluster makes of the eval set: every kInputStep-th case (sanitized.h), so many
// requests at a time.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/inference/v1/inference.pb.h"
#include "tests/integration/cluster.h"
#include "tests/integration/eval_cases.h"

namespace banyan::test {

// The case's prompt, to be answered greedily.
inference::v1::GenerateRequest GreedyRequest(const EvalCase& eval_case);

struct ExactAnswers {
  size_t asked = 0;                // cases with a single answer
  std::vector<std::string> wrong;  // which of them was answered otherwise, and how
};
ExactAnswers AskSingleAnswers(const Cluster& cluster, const EvalSet& set, int concurrency);

// Of every token of every answer, in the order of the cases; the first request that fails.
absl::StatusOr<std::vector<float>> AnswerLogprobs(const Cluster& cluster, const EvalSet& set,
                                                  int concurrency);
double Perplexity(const std::vector<float>& logprobs);

}  // namespace banyan::test
