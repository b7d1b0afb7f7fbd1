// A loaded model as the RPC adapter sees it.
#pragma once

#include <functional>

#include "proto/inference/v1/inference.pb.h"
#include "services/trunk/engine/engine.h"
#include "services/trunk/server/model_facts.h"

namespace banyan::trunk {

// Thread-safe; borrowed by the service, which is gone before it.
struct ServingModel {
  ModelFacts facts;
  Engine* engine = nullptr;
  inference::v1::GetModelInfoResponse info;  // all but the shards
  // Fills in the shards and their replicas' present states; may be called by any thread.
  std::function<void(inference::v1::GetModelInfoResponse& info)> add_shards;
};

}  // namespace banyan::trunk
