#include "services/client/load/eval_file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan::client {
namespace {

using inference::v1::GenerateRequest;
using nlohmann::json;

// An answer may run a little over the expected length before it counts as too long.
constexpr int32_t kSpareTokens = 8;

absl::StatusOr<std::vector<int32_t>> ReadIds(const json& entry, const char* key,
                                             const std::string& where) {
  if (!entry.contains(key) || !entry[key].is_array() || entry[key].empty()) {
    return InvalidArgumentF("{}: expected a list of token ids \"{}\"", where, key);
  }
  std::vector<int32_t> ids;
  for (const json& id : entry[key]) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return InvalidArgumentF("{}: \"{}\" holds {}, expected token ids", where, key,
                              Printable(id.dump(), 40));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::vector<int32_t> WithoutEnd(std::vector<int32_t> ids, const std::vector<int32_t>& eos) {
  if (!ids.empty() && std::find(eos.begin(), eos.end(), ids.back()) != eos.end()) ids.pop_back();
  return ids;
}

}  // namespace

absl::StatusOr<std::vector<EvalCase>> LoadEvalFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in) {
    return StatusF(absl::StatusCode::kNotFound, "cannot read {}: {}", path, strerror(errno));
  }
  const json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() || !parsed.contains("cases") || !parsed["cases"].is_array()) {
    return InvalidArgumentF("{}: expected an object with a list \"cases\"", path);
  }
  std::vector<EvalCase> cases;
  for (const json& entry : parsed["cases"]) {
    const std::string where = fmt::format("{}: case {}", path, cases.size());
    if (!entry.is_object()) return InvalidArgumentF("{}: expected an object", where);
    EvalCase eval_case;
    ASSIGN_OR_RETURN(eval_case.prompt_ids, ReadIds(entry, "prompt_ids", where));
    ASSIGN_OR_RETURN(eval_case.answer_ids, ReadIds(entry, "answer_ids", where));
    if (entry.contains("greedy_matches")) {
      if (!entry["greedy_matches"].is_boolean()) {
        return InvalidArgumentF("{}: \"greedy_matches\" must be true or false", where);
      }
      eval_case.has_one_answer = entry["greedy_matches"].get<bool>();
    }
    cases.push_back(std::move(eval_case));
  }
  if (cases.empty()) return InvalidArgumentF("{}: no cases", path);
  return cases;
}

GenerateRequest AnswerRequest(const EvalCase& eval_case) {
  GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(eval_case.prompt_ids.begin(),
                                                  eval_case.prompt_ids.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_new_tokens(static_cast<int32_t>(eval_case.answer_ids.size()) +
                                                 kSpareTokens);
  return request;
}

GenerateRequest ScoreRequest(const EvalCase& eval_case) {
  GenerateRequest request;
  auto& ids = *request.mutable_token_ids()->mutable_ids();
  ids.Add(eval_case.prompt_ids.begin(), eval_case.prompt_ids.end());
  ids.Add(eval_case.answer_ids.begin(), eval_case.answer_ids.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_new_tokens(1);
  request.set_prompt_logprobs(true);
  return request;
}

bool SameAnswer(const std::vector<int32_t>& expected, const std::vector<int32_t>& found,
                const std::vector<int32_t>& eos_token_ids) {
  return WithoutEnd(expected, eos_token_ids) == WithoutEnd(found, eos_token_ids);
}

absl::StatusOr<EvalScore> ScoreEval(const std::vector<EvalCase>& cases,
                                    const std::vector<int32_t>& eos_token_ids,
                                    const std::vector<LoadOutcome>& answers,
                                    const std::vector<LoadOutcome>& scores) {
  CHECK(answers.size() == cases.size() && scores.size() == cases.size());
  EvalScore score;
  score.num_cases = static_cast<int64_t>(cases.size());
  double sum = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const EvalCase& eval_case = cases[i];
    if (eval_case.has_one_answer) {
      ++score.num_one_answer;
      // Running into the length limit is not the answer even where the tokens agree so far.
      if (answers[i].status.ok() &&
          answers[i].generation.finished.reason() == inference::v1::STOP &&
          SameAnswer(eval_case.answer_ids, answers[i].generation.token_ids, eos_token_ids)) {
        ++score.num_exact;
      } else {
        score.mismatches.push_back(static_cast<int64_t>(i));
      }
    }
    if (!scores[i].status.ok()) return Annotate(scores[i].status, fmt::format("case {}", i));
    const auto& records = scores[i].generation.started.prompt_logprobs();
    const size_t num_prompt = eval_case.prompt_ids.size() + eval_case.answer_ids.size();
    if (static_cast<size_t>(records.size()) != num_prompt - 1) {
      return StatusF(absl::StatusCode::kInternal,
                     "case {}: {} records of prompt_logprobs, expected {}: one for each prompt "
                     "token after the first",
                     i, records.size(), num_prompt - 1);
    }
    for (size_t k = 0; k < eval_case.answer_ids.size(); ++k) {
      const auto& record = records[static_cast<int>(eval_case.prompt_ids.size() + k - 1)];
      if (record.token_id() != eval_case.answer_ids[k]) {
        return StatusF(absl::StatusCode::kInternal,
                       "case {}: prompt_logprobs names token {} at answer position {}, expected {}",
                       i, record.token_id(), k, eval_case.answer_ids[k]);
      }
      sum += static_cast<double>(record.logprob());
    }
    score.num_answer_tokens += static_cast<int64_t>(eval_case.answer_ids.size());
  }
  score.perplexity = std::exp(-sum / static_cast<double>(score.num_answer_tokens));
  return score;
}

}  // namespace banyan::client
