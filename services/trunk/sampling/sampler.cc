#include "services/trunk/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "services/trunk/sampling/philox.h"

namespace banyan::trunk {
namespace {

constexpr float kGreedyTemperature = 1e-5f;

float Penalized(const SamplingParams& params, int32_t count, float logit) {
  logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  logit -= params.frequency_penalty * static_cast<float>(count);
  if (count > 0) logit -= params.presence_penalty;
  return logit;
}

void ApplyBiasAndPenalties(const SamplingParams& params, const TokenHistory& history,
                           std::span<float> logits) {
  const auto inside = [&](int32_t id) { return static_cast<size_t>(id) < logits.size(); };
  for (const auto& [id, bias] : params.logit_bias) {
    if (inside(id)) logits[static_cast<size_t>(id)] += bias;
  }
  if (!TokenHistory::NeededBy(params)) return;
  for (const auto& [id, count] : history.output_counts()) {
    if (!inside(id)) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = Penalized(params, count, logit);
  }
}

// The same to some of a row's logits.
void ApplyBiasAndPenalties(const SamplingParams& params, const TokenHistory& history,
                           std::span<ScoredId> some) {
  for (const auto& [id, bias] : params.logit_bias) {
    for (ScoredId& candidate : some) {
      if (candidate.id == id) candidate.score += bias;
    }
  }
  if (!TokenHistory::NeededBy(params)) return;
  for (ScoredId& candidate : some) {
    const auto found = history.output_counts().find(candidate.id);
    if (found == history.output_counts().end()) continue;
    candidate.score = Penalized(params, found->second, candidate.score);
  }
}

bool ChangesLogits(const SamplingParams& params) {
  return !params.logit_bias.empty() || TokenHistory::NeededBy(params);
}

// Whether bias and penalties leave no logit higher than it was; rounding does not either.
bool NeverRaises(const SamplingParams& params) {
  return params.repetition_penalty >= 1.0f && params.frequency_penalty >= 0.0f &&
         params.presence_penalty >= 0.0f &&
         std::all_of(params.logit_bias.begin(), params.logit_bias.end(),
                     [](const auto& entry) { return entry.second <= 0.0f; });
}

bool IsGreedy(const SamplingParams& params) {
  return params.temperature < kGreedyTemperature || params.top_k == 1;
}

// Of `candidates`, logits: the weights, and their sum.
double WeighCandidates(float max, float scale, std::vector<ScoredId>* candidates) {
  double total = 0;
  for (ScoredId& candidate : *candidates) {
    candidate.score = ExpNonPositive((candidate.score - max) * scale);
    total += static_cast<double>(candidate.score);
  }
  return total;
}

double MassOf(std::span<const ScoredId> candidates) {
  double mass = 0;
  for (const ScoredId& candidate : candidates) mass += static_cast<double>(candidate.score);
  return mass;
}

// The last member of the smallest set of highest scores whose sum reaches `target`; reorders
// `candidates` (at least one). Partitions by halves and follows the mass: linear time.
ScoredId LastOfNucleus(std::vector<ScoredId>* candidates, double target) {
  auto begin = candidates->begin();
  auto end = candidates->end();
  double before = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, ScoresHigher);
    const double upper = MassOf({&*begin, static_cast<size_t>(middle - begin)});
    if (before + upper >= target) {
      end = middle;
    } else {
      before += upper;
      begin = middle;
    }
  }
  return *begin;
}

absl::Status NotFinite(std::span<const float> logits, int64_t position) {
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!std::isfinite(logits[id])) {
      return StatusF(absl::StatusCode::kInternal,
                     "logit of token id {} for position {} is {}: expected a finite number", id,
                     position, logits[id]);
    }
  }
  return StatusF(absl::StatusCode::kInternal, "logits for position {} are not finite", position);
}

}  // namespace

Sampler::Sampler(int32_t sampled_vocab_size) : sampled_vocab_size_(sampled_vocab_size) {
  CHECK(sampled_vocab_size > 0);
}

absl::StatusOr<int32_t> Sampler::Choose(const SamplingParams& params, const TokenHistory& history,
                                        int64_t position, std::span<float> logits) {
  CHECK(logits.size() >= static_cast<size_t>(sampled_vocab_size_));
  const std::span<float> row = logits.first(static_cast<size_t>(sampled_vocab_size_));
  ApplyBiasAndPenalties(params, history, row);
  const RowSummary summary = SummarizeRow(row);
  if (!summary.finite) return NotFinite(row, position);
  if (IsGreedy(params)) return FirstIndexOf(row, summary.max);
  return Draw(params, UniformAt(params.seed, static_cast<uint64_t>(position)), summary.max, row);
}

int32_t Sampler::Draw(const SamplingParams& params, double uniform, float max,
                      std::span<const float> logits) {
  const float scale = 1.0f / params.temperature;
  double total = 0;
  candidates_.clear();
  if (TakesTopK(params)) {
    SelectTop(logits, params.top_k, &candidates_);
    total = WeighCandidates(max, scale, &candidates_);
  } else {
    weights_.resize(logits.size());
    total = ExpRow(logits, max, scale, weights_);
    if (params.top_p >= 1.0f && params.min_p <= 0.0f) return DrawFromAll(uniform, total);
    // Ids below this weight have together less than the mass that top-p leaves out, so none of them
    // can be in the nucleus; usually a few hundred remain.
    const double left_out = std::max(0.0, (1.0 - static_cast<double>(params.top_p)) * total);
    const float floor = std::max(
        params.min_p, static_cast<float>(left_out / static_cast<double>(logits.size())) * 0.999f);
    for (size_t id = 0; id < weights_.size(); ++id) {
      if (weights_[id] >= floor) candidates_.push_back({weights_[id], static_cast<int32_t>(id)});
    }
  }
  return DrawFromCandidates(params, uniform, total);
}

bool Sampler::TakesTopK(const SamplingParams& params) const {
  return IsGreedy(params) || (params.top_k > 0 && params.top_k < sampled_vocab_size_);
}

int32_t Sampler::TopNeeded(const SamplingParams& params, int32_t most) const {
  const bool changes = ChangesLogits(params);
  if (changes && !NeverRaises(params)) return 0;
  const int32_t as_many_as_there_are = std::min(most, sampled_vocab_size_);
  if (!TakesTopK(params)) {
    return params.top_p >= 1.0f && params.min_p > 0.0f ? as_many_as_there_are : 0;
  }
  const int32_t taken = IsGreedy(params) ? 1 : params.top_k;
  if (!changes) return taken <= most ? taken : 0;
  // Those that fall need others to come after them.
  return taken <= most / 2 ? as_many_as_there_are : 0;
}

std::optional<int32_t> Sampler::ChooseFromTop(const SamplingParams& params,
                                              const TokenHistory& history, int64_t position,
                                              std::span<const ScoredId> top) {
  CHECK(!top.empty());
  // An id that is not here comes after the last one, also after penalties, which raise nothing.
  const ScoredId last = top.back();
  const bool others = top.size() < static_cast<size_t>(sampled_vocab_size_);
  candidates_.assign(top.begin(), top.end());
  if (ChangesLogits(params)) {
    CHECK(NeverRaises(params));
    ApplyBiasAndPenalties(params, history, candidates_);
    std::sort(candidates_.begin(), candidates_.end(), ScoresHigher);
  }
  const bool takes_top_k = TakesTopK(params);
  const auto taken = static_cast<size_t>(IsGreedy(params) || !takes_top_k ? 1 : params.top_k);
  CHECK(taken <= candidates_.size());
  if (others && ScoresHigher(last, candidates_[taken - 1])) return std::nullopt;
  if (IsGreedy(params)) return candidates_[0].id;

  const float scale = 1.0f / params.temperature;
  const float max = candidates_[0].score;
  if (takes_top_k) {
    candidates_.resize(taken);
  } else if (others &&
             // Weights are within 2 ulp, so a lower logit's may be a little higher.
             ExpNonPositive((last.score - max) * scale) >= params.min_p * 0.9999f) {
    return std::nullopt;
  } else {
    // As Draw goes through the whole row.
    std::sort(candidates_.begin(), candidates_.end(),
              [](const ScoredId& a, const ScoredId& b) { return a.id < b.id; });
  }
  const double total = WeighCandidates(max, scale, &candidates_);
  return DrawFromCandidates(params, UniformAt(params.seed, static_cast<uint64_t>(position)), total);
}

int32_t Sampler::DrawFromCandidates(const SamplingParams& params, double uniform, double total) {
  if (params.top_p < 1.0f) {
    partitioned_ = candidates_;
    const ScoredId last = LastOfNucleus(&partitioned_, static_cast<double>(params.top_p) * total);
    std::erase_if(candidates_, [&](const ScoredId& c) { return ScoresHigher(last, c); });
  }
  // The most likely id has weight exp(0) = 1.
  std::erase_if(candidates_, [&](const ScoredId& c) { return c.score < params.min_p; });

  const double target = uniform * MassOf(candidates_);
  double cumulative = 0;
  for (const ScoredId& candidate : candidates_) {
    cumulative += static_cast<double>(candidate.score);
    if (cumulative > target) return candidate.id;
  }
  return candidates_.back().id;
}

int32_t Sampler::DrawFromAll(double uniform, double total) const {
  const double target = uniform * total;
  // Sums are taken here in another order than `total`: the last id with any weight closes the gap.
  int32_t last = 0;
  double cumulative = 0;
  for (size_t id = 0; id < weights_.size(); ++id) {
    if (weights_[id] == 0.0f) continue;
    last = static_cast<int32_t>(id);
    cumulative += static_cast<double>(weights_[id]);
    if (cumulative > target) break;
  }
  return last;
}

}  // namespace banyan::trunk
