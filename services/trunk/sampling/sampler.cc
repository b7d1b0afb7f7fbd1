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
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * static_cast<float>(count);
    if (count > 0) logit -= params.presence_penalty;
  }
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
  if (params.temperature < kGreedyTemperature || params.top_k == 1) {
    return FirstIndexOf(row, summary.max);
  }
  return Draw(params, UniformAt(params.seed, static_cast<uint64_t>(position)), summary.max, row);
}

int32_t Sampler::Draw(const SamplingParams& params, double uniform, float max,
                      std::span<const float> logits) {
  const float scale = 1.0f / params.temperature;
  double total = 0;
  candidates_.clear();
  if (params.top_k > 0 && params.top_k < sampled_vocab_size_) {
    SelectTop(logits, params.top_k, &candidates_);
    for (ScoredId& candidate : candidates_) {
      candidate.score = ExpNonPositive((candidate.score - max) * scale);
      total += static_cast<double>(candidate.score);
    }
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
