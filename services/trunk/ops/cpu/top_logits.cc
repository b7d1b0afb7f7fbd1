#include "services/trunk/ops/cpu/top_logits.h"

#include <cstddef>
#include <span>

#include "common/plan/op_scratch.h"

namespace banyan::trunk::cpu {

static_assert(sizeof(ScoredId) == kCpuTopLogitBytes);
static_assert(SelectTopCapacity(kMaxTopLogits) <= kCpuTopLogits);

bool TopLogitsRow(const float* logits, int32_t num_ids, int32_t k, std::vector<ScoredId>* scratch,
                  float* scores, int32_t* ids) {
  const std::span<const float> row(logits, static_cast<size_t>(num_ids));
  if (!WithinBound(row)) return false;
  SelectTop(row, k, scratch);
  for (size_t i = 0; i < scratch->size(); ++i) {
    scores[i] = (*scratch)[i].score;
    ids[i] = (*scratch)[i].id;
  }
  return true;
}

}  // namespace banyan::trunk::cpu
