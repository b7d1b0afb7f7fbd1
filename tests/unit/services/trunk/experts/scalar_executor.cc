#include "tests/unit/services/trunk/experts/scalar_executor.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>

#include "common/base/check.h"
#include "common/base/strings.h"
#include "common/quant/bf16.h"
#include "services/trunk/routing/dispatch_plan.h"
#include "tests/fakes/expert_host.h"

namespace banyan::testing_experts {
namespace {

float WeightAt(int32_t layer, int32_t expert, int32_t matrix, int32_t width, int32_t hidden) {
  uint64_t x =
      (((static_cast<uint64_t>(layer) * 64 + expert) * 3 + matrix) * 1024 + width) * 1024 + hidden;
  x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  x ^= x >> 29;
  x *= 0x94d049bb133111ebu;
  return static_cast<float>(x >> 40) / static_cast<float>(1 << 24) - 0.5f;
}

template <typename T>
T At(const std::byte* from, size_t i) {
  T value;
  std::memcpy(&value, from + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

ShardGeometry Geometry(bool by_experts, int32_t index, int32_t count) {
  ShardGeometry geometry{.num_layers = kLayers,
                         .hidden_size = kHidden,
                         .num_experts = kExperts,
                         .moe_intermediate_size = kWidth,
                         .max_top_k = kTopK,
                         .first_expert = 0,
                         .num_shard_experts = kExperts,
                         .first_width = 0,
                         .num_shard_width = kWidth,
                         .max_rows = kRowLimit};
  const int32_t size = by_experts ? kExperts : kWidth;
  const int32_t first = size * index / count;
  const int32_t length = size * (index + 1) / count - first;
  (by_experts ? geometry.first_expert : geometry.first_width) = first;
  (by_experts ? geometry.num_shard_experts : geometry.num_shard_width) = length;
  return geometry;
}

trunk::ExpectedModel Model() {
  return {.fingerprint = kFingerprint,
          .num_layers = kLayers,
          .moe_layers = {0, 1},
          .num_experts = kExperts,
          .hidden_size = kHidden,
          .moe_intermediate_size = kWidth,
          .num_experts_per_tok = kTopK,
          .max_rows = kRowLimit};
}

absl::Status ScalarExecutor::Run(const expert::ExpertCall& call) {
  if (call.layer >= geometry_.num_layers) {
    return InvalidArgumentF("layer {}, expected 0 to {}", call.layer, geometry_.num_layers - 1);
  }
  if (call.top_k > geometry_.max_top_k) {
    return InvalidArgumentF("top_k {}, expected at most {}", call.top_k, geometry_.max_top_k);
  }
  const int32_t end = geometry_.first_expert + geometry_.num_shard_experts;
  for (int32_t i = 0; i < call.num_rows * call.top_k; ++i) {
    const auto id = At<uint16_t>(call.expert_ids, static_cast<size_t>(i));
    if (id != trunk::kOtherShard && (id < geometry_.first_expert || id >= end)) {
      return InvalidArgumentF("row {} expert {}: this shard has {} to {}", i / call.top_k, id,
                              geometry_.first_expert, end - 1);
    }
  }
  for (int32_t row = 0; row < call.num_rows; ++row) {
    std::vector<float> x(kHidden), out(kHidden, 0.0f);
    for (int32_t h = 0; h < kHidden; ++h) {
      const auto i = static_cast<size_t>(row) * kHidden + h;
      x[h] = call.activation_type == expert::ActivationType::kF32
                 ? At<float>(call.activations, i)
                 : ToFloat(At<BF16>(call.activations, i));
    }
    for (int32_t e = geometry_.first_expert; e < end; ++e) {
      for (int32_t k = 0; k < call.top_k; ++k) {
        const auto place = static_cast<size_t>(row) * call.top_k + k;
        if (At<uint16_t>(call.expert_ids, place) != e) continue;
        std::vector<double> y(kHidden, 0.0);
        const int32_t last = geometry_.first_width + geometry_.num_shard_width;
        for (int32_t w = geometry_.first_width; w < last; ++w) {
          double gate = 0, up = 0;
          for (int32_t h = 0; h < kHidden; ++h) {
            gate += x[h] * WeightAt(call.layer, e, 0, w, h);
            up += x[h] * WeightAt(call.layer, e, 1, w, h);
          }
          const double hidden = gate / (1 + std::exp(-gate)) * up;
          for (int32_t h = 0; h < kHidden; ++h) y[h] += hidden * WeightAt(call.layer, e, 2, w, h);
        }
        for (int32_t h = 0; h < kHidden; ++h) {
          out[h] += At<float>(call.weights, place) * static_cast<float>(y[h]);
        }
      }
    }
    for (int32_t h = 0; h < kHidden; ++h) {
      const auto i = static_cast<size_t>(row) * kHidden + h;
      if (call.reply_type == expert::ActivationType::kF32) {
        std::memcpy(call.out + i * 4, &out[h], 4);
      } else {
        const BF16 value = ToBF16(out[h]);
        std::memcpy(call.out + i * 2, &value, 2);
      }
    }
  }
  return absl::OkStatus();
}

Rows RandomRows(uint32_t seed, int32_t num_rows) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Rows rows{.num_rows = num_rows, .activations = {}, .ids = {}, .weights = {}};
  for (int32_t i = 0; i < num_rows * kHidden; ++i) rows.activations.push_back(normal(rng));
  for (int32_t row = 0; row < num_rows; ++row) {
    std::vector<uint16_t> ids(kExperts);
    std::iota(ids.begin(), ids.end(), uint16_t{0});
    std::shuffle(ids.begin(), ids.end(), rng);
    // Every third row keeps to the first experts, so that some shards get no row of it.
    if (row % 3 == 0) std::iota(ids.begin(), ids.end(), uint16_t{0});
    rows.ids.insert(rows.ids.end(), ids.begin(), ids.begin() + kTopK);
    for (int32_t k = 0; k < kTopK; ++k) rows.weights.push_back(std::abs(normal(rng)));
  }
  return rows;
}

std::vector<float> ExpectedSums(const Rows& rows, int32_t layer, bool by_experts,
                                int32_t num_shards) {
  std::vector<float> sums(static_cast<size_t>(rows.num_rows) * kHidden, 0.0f);
  for (int32_t s = 0; s < num_shards; ++s) {
    ScalarExecutor executor(Geometry(by_experts, s, num_shards));
    const ShardGeometry& geometry = executor.geometry();
    std::vector<uint16_t> ids = rows.ids;
    for (uint16_t& id : ids) {
      if (id < geometry.first_expert || id >= geometry.first_expert + geometry.num_shard_experts) {
        id = trunk::kOtherShard;
      }
    }
    std::vector<float> partial(sums.size());
    CHECK(executor
              .Run({.layer = layer,
                    .num_rows = rows.num_rows,
                    .top_k = kTopK,
                    .expert_ids = reinterpret_cast<const std::byte*>(ids.data()),
                    .weights = reinterpret_cast<const std::byte*>(rows.weights.data()),
                    .activations = reinterpret_cast<const std::byte*>(rows.activations.data()),
                    .activation_type = expert::ActivationType::kF32,
                    .out = reinterpret_cast<std::byte*>(partial.data()),
                    .reply_type = expert::ActivationType::kF32})
              .ok());
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += partial[i];
  }
  return sums;
}

void RunExpertChild(const std::string& listen, int32_t index, int32_t count) {
  ScalarExecutor executor(Geometry(false, index, count));
  ExpertHost::Options options;
  options.listen = listen;
  const ExpertHost host(
      options, MakeDescription(executor.geometry(), expert::v1::WIDTH, index, count, kFingerprint),
      &executor);
  std::printf("listening %s\n", host.address().c_str());
  std::fflush(stdout);
  while (true) pause();
}

}  // namespace banyan::testing_experts
