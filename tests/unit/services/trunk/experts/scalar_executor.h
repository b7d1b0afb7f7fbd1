// A small exact expert model for tests of the call: weights are a function of their place, so every
// shard of every split agrees on them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/expert/runtime/expert_executor.h"
#include "services/trunk/experts/cluster_check.h"

namespace banyan::testing_experts {

inline constexpr int32_t kLayers = 2;
inline constexpr int32_t kHidden = 12;
inline constexpr int32_t kWidth = 24;
inline constexpr int32_t kExperts = 16;
inline constexpr int32_t kTopK = 3;
inline constexpr int32_t kRowLimit = 40;
inline constexpr char kFingerprint[] = "5ca1ab1e";

// Shard `index` of `count`: by experts or by width, as even as it goes.
ShardGeometry Geometry(bool by_experts, int32_t index, int32_t count);
trunk::ExpectedModel Model();

class ScalarExecutor final : public expert::ExpertExecutor {
 public:
  explicit ScalarExecutor(const ShardGeometry& geometry) : geometry_(geometry) {}
  const ShardGeometry& geometry() const override { return geometry_; }
  absl::Status Run(const expert::ExpertCall& call) override;

 private:
  const ShardGeometry geometry_;
};

struct Rows {
  int32_t num_rows = 0;
  std::vector<float> activations;  // [num_rows, kHidden]
  std::vector<uint16_t> ids;       // [num_rows, kTopK]
  std::vector<float> weights;
};
Rows RandomRows(uint32_t seed, int32_t num_rows);

// The sum of the shards' partial rows in shard order, straight from executors: what a transport has
// to deliver bit for bit.
std::vector<float> ExpectedSums(const Rows& rows, int32_t layer, bool by_experts,
                                int32_t num_shards);

// Serves one shard until killed: argv of the child is --expert_child LISTEN INDEX COUNT.
[[noreturn]] void RunExpertChild(const std::string& listen, int32_t index, int32_t count);

}  // namespace banyan::testing_experts
