// A selector byte ('m', 'g' or 'c'), then config.json, generation_config.json or a cluster
// configuration.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "common/config/cluster_config.h"
#include "common/config/generation_config.h"
#include "common/config/model_config.h"
#include "common/config/tensor_inventory.h"

namespace banyan {
namespace {

void RunModel(std::string_view json) {
  const auto config = ParseModelConfig(json, "fuzz");
  if (!config.ok()) return;
  const ModelConfig& c = *config;
  CHECK(static_cast<int32_t>(c.mixers.size()) == c.num_hidden_layers);
  CHECK(static_cast<int32_t>(c.mlps.size()) == c.num_hidden_layers);
  CHECK(c.num_attention_heads % c.num_key_value_heads == 0);
  CHECK(c.linear_num_value_heads % c.linear_num_key_heads == 0);
  CHECK(c.rotary_dim % 2 == 0 && c.rotary_dim > 0 && c.rotary_dim <= c.head_dim);
  CHECK(c.num_experts_per_tok <= c.num_experts && c.num_experts <= 65535);
  CHECK(std::isfinite(c.rope_theta) && c.rms_norm_eps > 0.0f);
  CHECK(c.linear_conv_dim() > 0);
  if (c.num_hidden_layers > 16 || c.num_experts > 64) return;  // keep the fuzzer quick
  // UBSan watches the products.
  for (const TensorSpec& spec : TrunkTensors(c)) CHECK(spec.shape.num_elements() > 0);
  for (int32_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    for (ExpertNaming naming : {ExpertNaming::kPerExpert, ExpertNaming::kFused}) {
      for (const TensorSpec& spec : RoutedExpertTensors(c, layer, naming)) {
        CHECK(spec.shape.num_elements() > 0);
      }
    }
  }
}

void RunGeneration(std::string_view json) {
  const auto config = ParseGenerationConfig(json, "fuzz");
  if (!config.ok()) return;
  if (config->temperature) CHECK(std::isfinite(*config->temperature) && *config->temperature >= 0);
  if (config->top_p) CHECK(*config->top_p > 0 && *config->top_p <= 1);
  if (config->min_p) CHECK(*config->min_p >= 0 && *config->min_p <= 1);
  if (config->repetition_penalty) CHECK(*config->repetition_penalty > 0);
  if (config->top_k) CHECK(*config->top_k >= 0);
  for (int32_t id : config->eos_token_ids) CHECK(id >= 0);
}

void RunCluster(std::string_view json) {
  const auto config = ParseClusterConfig(json, "fuzz");
  if (!config.ok()) return;
  CHECK(!config->shards.empty());
  std::set<std::string> seen;
  for (const ClusterConfig::Shard& shard : config->shards) {
    CHECK(!shard.replicas.empty());
    for (const std::string& address : shard.replicas) CHECK(seen.insert(address).second);
  }
}

}  // namespace
}  // namespace banyan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view json(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0]) {
    case 'm':
      banyan::RunModel(json);
      break;
    case 'g':
      banyan::RunGeneration(json);
      break;
    case 'c':
      banyan::RunCluster(json);
      break;
    default:
      break;
  }
  return 0;
}
