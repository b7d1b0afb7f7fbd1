// The small models against the reference, layer by layer, for every way of feeding the prompt.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tests/fakes/backends.h"
#include "tests/fakes/model_harness.h"
#include "tests/fakes/source_dir.h"
#include "tests/golden/model/golden_data.h"

namespace banyan::test {
namespace {

constexpr float kTolerance = 1e-3f;        // golden/README: an f32 engine
constexpr float kDecisiveGap = 0.01f;      // between the reference's two best logits
constexpr float kWeightTolerance = 1e-4f;  // router weights: sums to 1, logits within the tolerance
constexpr double kGpuRelative = 2e-2 / 20;  // of a row's norm; docs/adr/two-terms-on-gpus.md
// On a GPU a weight moves by w (1 - w) <= 1/4 of what two logits move apart.
constexpr float kGpuWeightTolerance = 2 * kTolerance / 4;

enum class Feed { kWhole, kChunks, kTokenByToken };

struct Case {
  const char* model;
  Feed feed;
  const char* backend;
  int32_t tensor_parallel = 1;
};

// The first place where two arrays differ by more than the tolerance.
testing::AssertionResult Near(std::span<const float> found, std::span<const float> expected,
                              float tolerance, int64_t row_size) {
  if (found.size() != expected.size()) {
    return testing::AssertionFailure() << found.size() << " values, expected " << expected.size();
  }
  float worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const float difference = std::abs(found[i] - expected[i]);
    worst = std::max(worst, difference);
    if (!(difference <= tolerance)) {
      return testing::AssertionFailure()
             << "row " << static_cast<int64_t>(i) / row_size << " column "
             << static_cast<int64_t>(i) % row_size << ": " << found[i] << ", expected "
             << expected[i] << " within " << tolerance;
    }
  }
  return testing::AssertionSuccess() << "largest difference " << worst;
}

// On a GPU: rows in the norm, of which bf16 may lose 2e-2 (golden/README), and two bf16 a twentieth
// of that (docs/adr/two-terms-on-gpus.md).
testing::AssertionResult RowsNear(std::span<const float> found, std::span<const float> expected,
                                  int64_t row_size) {
  if (found.size() != expected.size()) {
    return testing::AssertionFailure() << found.size() << " values, expected " << expected.size();
  }
  const auto size = static_cast<size_t>(row_size);
  double worst = 0;
  for (size_t first = 0; first < found.size(); first += size) {
    double difference = 0;
    double norm = 0;
    for (size_t i = first; i < first + size; ++i) {
      const double d = static_cast<double>(found[i]) - expected[i];
      difference += d * d;
      norm += static_cast<double>(expected[i]) * expected[i];
    }
    const double bound = kGpuRelative * std::sqrt(norm);
    worst = std::max(worst, std::sqrt(difference) / bound);
    if (!(std::sqrt(difference) <= bound)) {
      return testing::AssertionFailure()
             << "row " << first / size << ": difference " << std::sqrt(difference) << " of norm "
             << std::sqrt(norm) << ", bound " << bound;
    }
  }
  return testing::AssertionSuccess() << "worst " << worst << " of the bound";
}

struct ChosenExpert {
  int32_t id = 0;
  float weight = 0;
};

// Of each row `top_k`. By id on a GPU: the reference's prompts leave no doubt which experts these
// are, but may have two of them closer together than what its arithmetic moves.
template <typename Id>
std::vector<ChosenExpert> ChosenExperts(std::span<const Id> ids, std::span<const float> weights,
                                        int64_t top_k, bool on_cpu) {
  std::vector<ChosenExpert> chosen(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) chosen[i] = {ids[i], weights[i]};
  if (on_cpu) return chosen;
  for (auto row = chosen.begin(); row != chosen.end(); row += top_k) {
    std::sort(row, row + top_k,
              [](const ChosenExpert& a, const ChosenExpert& b) { return a.id < b.id; });
  }
  return chosen;
}

class LayersTest : public testing::TestWithParam<Case> {
 protected:
  // Feeds tokens of one sequence; logits of all of them.
  static std::vector<float> FeedTokens(ModelHarness* model, TestSequence* sequence,
                                       const std::vector<int32_t>& tokens, Feed feed) {
    const size_t step = feed == Feed::kWhole    ? tokens.size()
                        : feed == Feed::kChunks ? size_t{trunk::kDeltaNetChunkTokens}
                                                : 1;
    std::vector<float> logits;
    for (size_t first = 0; first < tokens.size(); first += step) {
      const size_t last = std::min(first + step, tokens.size());
      const std::vector<float> part = model->Run({{sequence,
                                                   {tokens.begin() + static_cast<int64_t>(first),
                                                    tokens.begin() + static_cast<int64_t>(last)},
                                                   feed != Feed::kTokenByToken}});
      logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
  }
};

TEST_P(LayersTest, AgreesWithTheReference) {
  const std::string directory = SourceDir() + "/tests/data/" + GetParam().model;
  const GoldenData golden = ReadGolden(directory);
  ModelHarness model({.directory = directory,
                      .backend = GetParam().backend,
                      .observe = true,
                      .tensor_parallel = GetParam().tensor_parallel});
  const ModelConfig& config = model.config();
  const int64_t hidden = config.hidden_size;
  const bool on_cpu = IsCpu(GetParam().backend);
  const auto near = [on_cpu](std::span<const float> found, std::span<const float> expected,
                             int64_t row_size) {
    return on_cpu ? Near(found, expected, kTolerance, row_size)
                  : RowsNear(found, expected, row_size);
  };
  const int64_t top_k = config.num_experts_per_tok;
  const auto block = static_cast<size_t>(golden.num_tokens * hidden);
  const auto routed = static_cast<size_t>(golden.num_tokens * top_k);

  TestSequence sequence = model.NewSequence();
  std::vector<float> logits = FeedTokens(&model, &sequence, golden.prompt, GetParam().feed);

  const RecordingObserver& seen = model.observer();
  const std::span<const float> states(golden.hidden_states);
  ASSERT_TRUE(Near(seen.embeddings, states.first(block), 0, hidden)) << "embed";
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto l = static_cast<size_t>(layer);
    const std::string mixer = config.mixers[l] == MixerKind::kLinearAttention
                                  ? "in_proj, causal_conv, delta_net or out_proj"
                                  : "qkv_proj, rope, paged_attention or o_proj";
    const std::vector<ChosenExpert> expected =
        ChosenExperts(std::span(golden.router_ids).subspan(l * routed, routed),
                      std::span(golden.router_weights).subspan(l * routed, routed), top_k, on_cpu);
    ASSERT_EQ(seen.layers[l].expert_ids.size(), routed);
    ASSERT_EQ(seen.layers[l].expert_weights.size(), routed);
    const std::vector<ChosenExpert> chosen = ChosenExperts(
        std::span(seen.layers[l].expert_ids), seen.layers[l].expert_weights, top_k, on_cpu);
    for (size_t i = 0; i < routed; ++i) {
      const std::string where = "layer " + std::to_string(layer) + " router_topk row " +
                                std::to_string(i / static_cast<size_t>(top_k)) +
                                ": the router, or before it " + mixer;
      ASSERT_EQ(chosen[i].id, expected[i].id) << where;
      ASSERT_NEAR(chosen[i].weight, expected[i].weight,
                  on_cpu ? kWeightTolerance : kGpuWeightTolerance)
          << where;
    }
    // The reference keeps the last layer's output after the final norm only.
    if (layer + 1 < config.num_hidden_layers) {
      ASSERT_TRUE(near(seen.layers[l].hidden, states.subspan((l + 1) * block, block), hidden))
          << "layer " << layer << " output: experts, shared expert or moe_combine";
    }
  }
  ASSERT_TRUE(near(seen.final_norm, states.last(block), hidden))
      << "last layer's experts or final norm";
  const int32_t vocab = config.vocab_size;
  ASSERT_TRUE(near(logits, golden.prefill_logits, vocab)) << "lm_head";

  // Greedy decoding, fed with the reference's tokens so that every step is comparable:
  // decode_logits[i] follow decode_ids[i].
  std::vector<float> last(logits.end() - vocab, logits.end());
  std::vector<float> expected(golden.prefill_logits.end() - vocab, golden.prefill_logits.end());
  for (int64_t i = 0; i < golden.num_decoded; ++i) {
    const auto at = static_cast<size_t>(i);
    std::vector<float> sorted = expected;
    std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
    if (sorted[0] - sorted[1] > kDecisiveGap) {
      ASSERT_EQ(ArgMax(last.data(), vocab), golden.decode_ids[at]) << "decode step " << i;
    }
    last = model.Run({{&sequence, {golden.decode_ids[at]}, false}});
    const auto row = golden.decode_logits.begin() + i * vocab;
    expected.assign(row, row + vocab);
    ASSERT_TRUE(near(last, expected, vocab)) << "decode step " << i;
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& param) {
  const char* feeds[] = {"Whole", "Chunks", "TokenByToken"};
  std::string name;
  bool first = true;  // letter of a word
  for (const char c : std::string(param.param.model)) {
    if (c != '-') name += first ? static_cast<char>(std::toupper(c)) : c;
    first = c == '-';
  }
  name += feeds[static_cast<size_t>(param.param.feed)];
  if (const int32_t ways = param.param.tensor_parallel; ways > 1) {
    name += std::to_string(ways) + "Ways";
  }
  return name + "_" + param.param.backend;
}

// Those of the backends that this machine has.
std::vector<Case> Cases() {
  std::vector<Case> cases = {
      {"tiny", Feed::kWhole, "amx"},          {"tiny", Feed::kTokenByToken, "amx"},
      {"tiny-fused", Feed::kChunks, "amx"},   {"tiny", Feed::kWhole, "avx512"},
      {"tiny", Feed::kChunks, "avx512"},      {"tiny", Feed::kTokenByToken, "avx512"},
      {"tiny-fused", Feed::kWhole, "avx512"}, {"tiny", Feed::kWhole, "avx2"},
      {"tiny", Feed::kTokenByToken, "avx2"},  {"tiny-fused", Feed::kChunks, "avx2"},
      {"tiny", Feed::kWhole, "scalar"},       {"tiny-fused", Feed::kTokenByToken, "scalar"},
      {"tiny", Feed::kWhole, "cuda"},         {"tiny", Feed::kChunks, "cuda"},
      {"tiny", Feed::kTokenByToken, "cuda"},  {"tiny-fused", Feed::kWhole, "cuda"},
  };
  for (const char* model : {"tiny-nf4", "tiny-nf4-single", "tiny-int8", "tiny-fp8"}) {
    cases.push_back({model, Feed::kWhole, "amx"});
    cases.push_back({model, Feed::kWhole, "avx512"});
    cases.push_back({model, Feed::kTokenByToken, "avx2"});
    cases.push_back({model, Feed::kChunks, "scalar"});
    cases.push_back({model, Feed::kWhole, "cuda"});
  }
  // Four: a key head of the DeltaNet on two ranks, a KV head of attention too.
  for (const int32_t ways : {2, 4}) {
    cases.push_back({"tiny", Feed::kWhole, "avx512", ways});
    cases.push_back({"tiny", Feed::kTokenByToken, "avx2", ways});
    cases.push_back({"tiny", Feed::kChunks, "scalar", ways});
    cases.push_back({"tiny-nf4", Feed::kWhole, "avx2", ways});
    cases.push_back({"tiny", Feed::kWhole, "cuda", ways});
    cases.push_back({"tiny", Feed::kTokenByToken, "cuda", ways});
  }
  cases.push_back({"tiny-int8", Feed::kWhole, "avx2", 2});
  cases.push_back({"tiny-fp8", Feed::kChunks, "avx2", 2});
  std::erase_if(cases, [](const Case& c) {
    return !IsCpu(c.backend) && c.tensor_parallel > AvailableGpus();
  });
  std::erase_if(cases, [backends = AvailableBackends()](const Case& c) {
    return std::find(backends.begin(), backends.end(), c.backend) == backends.end();
  });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, LayersTest, testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace banyan::test
