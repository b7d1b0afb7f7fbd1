#include "services/trunk/model/prompt_experts.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace banyan::trunk {
namespace {

// With so many rows nearly every expert has some: of 512, ten a row, 1 in 150 has none.
constexpr int32_t kRowsOfAllExperts = 256;

}  // namespace

PromptExperts::PromptExperts(const ModelConfig& config, int32_t max_rows, PromptExpertPool pool)
    : pool_(std::move(pool)),
      hidden_size_(config.hidden_size),
      share_({.num_experts = config.num_experts,
              .top_k = config.num_experts_per_tok,
              .own_experts = pool_.own_experts.back(),
              .max_rows = max_rows}) {
  rows_.reserve(static_cast<size_t>(max_rows));
  experts_.reserve(static_cast<size_t>(pool_.own_experts.back()) * pool_.slices.size());
  announced_.reserve(experts_.capacity());
}

bool PromptExperts::BeginStep(const StepPlan& plan) {
  rows_.clear();
  for (const PlanSegment& segment : plan.segments) {
    const int32_t own =
        PromptExpertsOf(pool_.own_experts, segment.prompt_tokens, pool_.long_prompt_tokens);
    if (own == 0) continue;
    rows_.push_back({segment.first_row, segment.first_row + segment.num_rows, own});
  }
  return !rows_.empty();
}

const uint16_t* PromptExperts::Take(int32_t num_rows, const uint16_t* expert_ids,
                                    const float* weights) {
  share_.Build(num_rows, rows_, expert_ids, weights);
  return share_.host_ids();
}

void PromptExperts::Queue(int32_t layer, int32_t num_rows, const Activations& a, Backend* backend) {
  CHECK(a.expert_rows_dtype == DType::kBF16);
  experts_.clear();
  // Slice by slice: experts that lie one behind the other are read so.
  for (const PromptExpertPool::Slice& slice : pool_.slices) {
    const std::byte* const first = slice.layers[static_cast<size_t>(layer)];
    for (const ExpertShare::Group& group : share_.groups()) {
      const int32_t at = group.expert - slice.first_expert;
      if (at < 0 || at >= slice.num_experts) continue;
      experts_.push_back({first + at * pool_.expert_bytes, group.first_pair, group.num_pairs});
    }
  }
  if (experts_.empty()) return;
  bytes_read_ += experts_.size() * static_cast<uint64_t>(pool_.expert_bytes);
  backend->HostExperts(num_rows, {.format = pool_.format,
                                  .hidden_size = hidden_size_,
                                  .width = pool_.width,
                                  .rows = a.expert_rows,
                                  .experts = experts_,
                                  .pair_rows = share_.pair_rows(),
                                  .pair_weights = share_.pair_weights(),
                                  .hidden = a.hidden});
}

void PromptExperts::Announce(int32_t layer, Backend* backend) {
  int32_t num_rows = 0;
  int32_t num_experts = 0;  // the most that one of them has
  for (const ExpertShare::OwnRows& rows : rows_) {
    num_rows += rows.end - rows.first;
    num_experts = std::max(num_experts, rows.own_experts);
  }
  if (num_rows < kRowsOfAllExperts) return;
  const std::vector<const std::byte*>& layers = pool_.slices.front().layers;
  const auto routed = std::find_if(layers.begin() + layer + 1, layers.end(),
                                   [](const std::byte* first) { return first != nullptr; });
  if (routed == layers.end()) return;
  announced_.clear();
  for (const PromptExpertPool::Slice& slice : pool_.slices) {
    const std::byte* const first = slice.layers[static_cast<size_t>(routed - layers.begin())];
    const int32_t end = std::min(slice.first_expert + slice.num_experts, num_experts);
    for (int32_t expert = slice.first_expert; expert < end; ++expert) {
      announced_.push_back(first + (expert - slice.first_expert) * pool_.expert_bytes);
    }
  }
  backend->WillReadHostExperts({.format = pool_.format,
                                .hidden_size = hidden_size_,
                                .width = pool_.width,
                                .experts = announced_});
}

}  // namespace banyan::trunk
