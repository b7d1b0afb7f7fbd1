#include "tests/integration/eval_run.h"

#include <atomic>
#include <cmath>
#include <functional>
#include <thread>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "tests/fakes/sanitized.h"

namespace banyan::test {
namespace {

// Calls ask(stub, i) for every i in [0, count), by so many threads with a connection each.
void ForEachAtOnce(const Cluster& cluster, size_t count, int concurrency,
                   const std::function<void(inference::v1::Inference::Stub&, size_t)>& ask) {
  std::atomic<size_t> next{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < concurrency; ++i) {
    clients.emplace_back([&] {
      const auto stub = cluster.NewStub();
      for (size_t at = next++; at < count; at = next++) ask(*stub, at);
    });
  }
  for (std::thread& client : clients) client.join();
}

absl::StatusOr<std::vector<float>> LogprobsOf(inference::v1::Inference::Stub& stub,
                                              const EvalCase& eval_case) {
  inference::v1::GenerateRequest request = GreedyRequest(eval_case);
  for (const int32_t id : eval_case.answer_ids) request.mutable_token_ids()->add_ids(id);
  request.mutable_sampling()->set_max_new_tokens(0);
  request.set_prompt_logprobs(true);
  ASSIGN_OR_RETURN(const Answer answer, Generate(stub, request));
  const auto& records = answer.started.prompt_logprobs();
  const size_t prompt = eval_case.prompt_ids.size();
  const size_t expected = prompt - 1 + eval_case.answer_ids.size();
  if (static_cast<size_t>(records.size()) != expected) {
    return StatusF(absl::StatusCode::kInternal, "{} log-probabilities, expected {}", records.size(),
                   expected);
  }
  // Record i is that of prompt token i + 1.
  std::vector<float> out;
  for (size_t k = 0; k < eval_case.answer_ids.size(); ++k) {
    const auto& record = records[static_cast<int>(prompt - 1 + k)];
    if (record.token_id() != eval_case.answer_ids[k]) {
      return StatusF(absl::StatusCode::kInternal, "answer token {}: {}, expected {}", k,
                     record.token_id(), eval_case.answer_ids[k]);
    }
    out.push_back(record.logprob());
  }
  return out;
}

}  // namespace

inference::v1::GenerateRequest GreedyRequest(const EvalCase& eval_case) {
  inference::v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(eval_case.prompt_ids.begin(),
                                                     eval_case.prompt_ids.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_new_tokens(256);
  return request;
}

ExactAnswers AskSingleAnswers(const Cluster& cluster, const EvalSet& set, int concurrency) {
  std::vector<size_t> asked;
  size_t num_single = 0;
  for (size_t k = 0; k < set.cases.size(); ++k) {
    if (set.cases[k].single_answer && num_single++ % kInputStep == 0) asked.push_back(k);
  }
  std::vector<std::string> wrong(asked.size());
  ForEachAtOnce(cluster, asked.size(), concurrency,
                [&](inference::v1::Inference::Stub& stub, size_t i) {
                  const EvalCase& eval_case = set.cases[asked[i]];
                  const absl::StatusOr<Answer> answer = Generate(stub, GreedyRequest(eval_case));
                  if (!answer.ok()) {
                    wrong[i] = fmt::format("case {}: {}", asked[i], answer.status().ToString());
                  } else if (answer->ids != eval_case.answer_ids) {
                    wrong[i] = fmt::format("case {}: answered {}", asked[i], answer->text);
                  }
                });
  std::erase(wrong, "");
  return {asked.size(), std::move(wrong)};
}

absl::StatusOr<std::vector<float>> AnswerLogprobs(const Cluster& cluster, const EvalSet& set,
                                                  int concurrency) {
  std::vector<absl::StatusOr<std::vector<float>>> found((set.cases.size() + kInputStep - 1) /
                                                        kInputStep);
  ForEachAtOnce(cluster, found.size(), concurrency,
                [&](inference::v1::Inference::Stub& stub, size_t i) {
                  found[i] = LogprobsOf(stub, set.cases[i * kInputStep]);
                });
  std::vector<float> out;
  for (size_t i = 0; i < found.size(); ++i) {
    if (!found[i].ok()) return Annotate(found[i].status(), fmt::format("case {}", i * kInputStep));
    out.insert(out.end(), found[i]->begin(), found[i]->end());
  }
  return out;
}

double Perplexity(const std::vector<float>& logprobs) {
  double negative_log_likelihood = 0;
  for (const float logprob : logprobs) negative_log_likelihood -= logprob;
  return std::exp(negative_log_likelihood / static_cast<double>(logprobs.size()));
}

}  // namespace banyan::test
