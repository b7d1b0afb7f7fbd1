#include "services/client/plan/plan_text.h"

#include <algorithm>

#include "common/base/byte_size.h"
#include "common/base/strings.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

std::string ModelLine(const ClusterPlan& plan) {
  const ModelConfig& c = plan.config;
  return fmt::format(
      "{}: {}, {} layers ({} delta-net, {} attention), {} experts a layer, {} of them a token\n",
      plan.directory, c.model_type, c.num_hidden_layers,
      CountMixers(c, MixerKind::kLinearAttention), CountMixers(c, MixerKind::kFullAttention),
      c.num_experts, c.num_experts_per_tok);
}

std::string TensorTable(const ClusterPlan& plan) {
  // The longest texts to the left, numbers to the right.
  size_t name_width = 0;
  size_t format_width = 0;
  for (const PlannedTensors& tensors : plan.tensors) {
    name_width = std::max(name_width, tensors.name.size());
    format_width = std::max(format_width, tensors.formats.size());
  }
  std::string text;
  int64_t count = 0;
  uint64_t bytes = 0;
  const auto row = [&](std::string_view name, int64_t number, std::string_view formats,
                       uint64_t size, std::string_view destination) {
    std::string line = fmt::format("  {:<{}}  {:>8}  {:<{}}  {:>10}  {}", name, name_width, number,
                                   formats, format_width, FormatByteSize(size), destination);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  };
  for (const PlannedTensors& tensors : plan.tensors) {
    row(tensors.name, tensors.count, tensors.formats, tensors.bytes, tensors.destination);
    count += tensors.count;
    bytes += tensors.bytes;
  }
  row("total", count, "", bytes, "");
  return text;
}

std::string ShardTitle(const ClusterPlan& plan, const ShardPlan& shard, size_t index) {
  const ShardGeometry& g = shard.pool.geometry;
  const std::string part = plan.split == ShardSplit::kWidth
                               ? fmt::format("columns {} to {} of every expert", g.first_width,
                                             g.first_width + g.num_shard_width - 1)
                               : fmt::format("experts {} to {}", g.first_expert,
                                             g.first_expert + g.num_shard_experts - 1);
  return fmt::format("expert shard {}/{}: {}, {}{}\n", index, plan.shards.size(), part,
                     shard.pool.format, shard.pool.packed ? ", from a pack" : ", mapped in place");
}

std::string FitsLine(const TrunkPlan& trunk) {
  const int32_t context = trunk.decoder.max_context_tokens;
  return fmt::format(
      "  fits: a context of {} tokens; {} request(s) at once, {} of them with a whole context; "
      "{} rows a step\n",
      context, trunk.max_sequences, trunk.SequencesOf(context), trunk.max_batch_tokens);
}

std::string BudgetLine(const ClusterPlan& plan) {
  std::string text =
      fmt::format("host memory of all on one machine: {}", FormatByteSize(plan.host_bytes()));
  if (plan.host_budget_bytes > 0) {
    text += fmt::format(" of {} (--host_budget)", FormatByteSize(plan.host_budget_bytes));
  } else {
    text +=
        fmt::format(" ({} here{})", FormatByteSize(plan.machine_bytes),
                    plan.host_bytes() > plan.machine_bytes ? ": too little, use more hosts" : "");
  }
  return text + "\n";
}

std::string Speed(const ClusterPlan& plan, const Bandwidth& bandwidth) {
  std::string text = fmt::format(
      "one token reads {} of trunk weights, {} of recurrent state, {} of expert weights\n",
      FormatByteSize(plan.trunk_bytes_per_token), FormatByteSize(plan.state_bytes_per_token),
      FormatByteSize(plan.expert_bytes_per_token));
  if (bandwidth.bytes_per_second <= 0) return text;
  return text + fmt::format("roof: {:.1f} tokens/s at {:.1f} GB/s of host memory ({}){}\n",
                            plan.TokensPerSecond(bandwidth.bytes_per_second),
                            bandwidth.bytes_per_second / 1e9, bandwidth.source,
                            plan.on_gpu ? ", the trunk's part on the GPU apart" : "");
}

std::string MemoryOf(const ClusterPlan& plan) {
  if (!plan.on_gpu) return "host memory";
  if (plan.tensor_parallel == 1) return "GPU memory";
  return fmt::format("memory of each of {} GPUs", plan.tensor_parallel);
}

nlohmann::ordered_json MemoryJson(const MemoryPlan& plan) {
  nlohmann::ordered_json items = nlohmann::ordered_json::array();
  for (const MemoryPlan::Item& item : plan.items()) {
    items.push_back({{"item", item.name}, {"bytes", item.bytes}, {"note", item.note}});
  }
  return {{"items", std::move(items)},
          {"total_bytes", plan.total_bytes()},
          {"budget_bytes", plan.budget_bytes()}};
}

}  // namespace

std::string PlanText(const ClusterPlan& plan, const Bandwidth& bandwidth) {
  std::string text = ModelLine(plan) + TensorTable(plan);
  text += fmt::format("trunk: {}\n{}{}", MemoryOf(plan), plan.trunk.memory.Table(),
                      FitsLine(plan.trunk));
  if (plan.trunk_budget_bytes() > 0) {
    text += fmt::format("  its part: banyan-trunk --host_budget {}\n", plan.trunk_budget_bytes());
  }
  if (plan.trunk.gpu_host) {
    text += "trunk: host memory beside it\n";
    for (const MemoryPlan::Item& item : plan.trunk.gpu_host->items()) {
      text +=
          fmt::format("  {:<16} {:>12}  {}\n", item.name, FormatByteSize(item.bytes), item.note);
    }
  }
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    text += ShardTitle(plan, plan.shards[i], i) + plan.shards[i].memory.Table();
  }
  return text + BudgetLine(plan) + Speed(plan, bandwidth);
}

std::string PlanSummary(const ClusterPlan& plan) {
  std::string text = ModelLine(plan);
  text += fmt::format("  trunk  {} of {}\n", FormatByteSize(plan.trunk.memory.total_bytes()),
                      MemoryOf(plan));
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    text += fmt::format("  expert {}  {} of host memory, pool in {}\n", i,
                        FormatByteSize(plan.shards[i].memory.total_bytes()),
                        plan.shards[i].pool.format);
  }
  return text + FitsLine(plan.trunk);
}

nlohmann::ordered_json PlanJson(const ClusterPlan& plan, const Bandwidth& bandwidth) {
  const ModelConfig& c = plan.config;
  nlohmann::ordered_json out = {
      {"model", plan.directory},         {"model_type", c.model_type},
      {"fingerprint", plan.fingerprint}, {"layers", c.num_hidden_layers},
      {"num_experts", c.num_experts},    {"num_experts_per_tok", c.num_experts_per_tok}};
  out["tensors"] = nlohmann::ordered_json::array();
  for (const PlannedTensors& tensors : plan.tensors) {
    out["tensors"].push_back({{"class", tensors.name},
                              {"count", tensors.count},
                              {"formats", tensors.formats},
                              {"bytes", tensors.bytes},
                              {"destination", tensors.destination}});
  }
  nlohmann::ordered_json trunk = MemoryJson(plan.trunk.memory);
  const int32_t context = plan.trunk.decoder.max_context_tokens;
  trunk["memory"] = plan.on_gpu ? "gpu" : "host";
  trunk["tensor_parallel"] = plan.tensor_parallel;
  trunk["max_context_tokens"] = context;
  trunk["max_sequences"] = plan.trunk.max_sequences;
  trunk["max_batch_tokens"] = plan.trunk.max_batch_tokens;
  trunk["max_mixed_tokens"] = plan.trunk.max_mixed_tokens;
  trunk["halved_rows"] = plan.trunk.decoder.halved_rows;
  trunk["prompt_experts"] = plan.trunk.decoder.prompt_experts;
  trunk["pages"] = plan.trunk.decoder.num_pages;
  trunk["whole_contexts"] = plan.trunk.SequencesOf(context);
  if (plan.trunk.gpu_host) {
    trunk["host_items"] = MemoryJson(*plan.trunk.gpu_host)["items"];
    trunk["host_bytes"] = plan.trunk.gpu_host->total_bytes();
  }
  if (plan.trunk_budget_bytes() > 0) trunk["host_budget_bytes"] = plan.trunk_budget_bytes();
  out["trunk"] = std::move(trunk);
  out["shards"] = nlohmann::ordered_json::array();
  for (const ShardPlan& shard : plan.shards) {
    nlohmann::ordered_json json = MemoryJson(shard.memory);
    json["pool_format"] = shard.pool.format;
    json["packed"] = shard.pool.packed;
    json["pool_bytes"] = shard.pool.pool_bytes;
    json["num_experts"] = shard.pool.geometry.num_shard_experts;
    json["width"] = shard.pool.geometry.num_shard_width;
    json["bytes_per_token"] = shard.pool.bytes_per_token;
    out["shards"].push_back(std::move(json));
  }
  out["host_bytes"] = plan.host_bytes();
  out["machine_bytes"] = plan.machine_bytes;
  out["bytes_per_token"] = {{"trunk_weights", plan.trunk_bytes_per_token},
                            {"recurrent_state", plan.state_bytes_per_token},
                            {"expert_weights", plan.expert_bytes_per_token}};
  if (bandwidth.bytes_per_second > 0) {
    out["bandwidth_bytes_per_second"] = bandwidth.bytes_per_second;
    out["bandwidth_source"] = bandwidth.source;
    out["roof_tokens_per_second"] = plan.TokensPerSecond(bandwidth.bytes_per_second);
  }
  return out;
}

}  // namespace banyan::client
