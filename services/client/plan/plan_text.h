// A cluster's plan as text and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "services/client/plan/cluster_plan.h"

namespace banyan::client {

// Of the host's memory; 0: not known. `source` says where it comes from.
struct Bandwidth {
  double bytes_per_second = 0;
  std::string source;
};

// Tensors, memory of every service, what fits, and what a token costs.
std::string PlanText(const ClusterPlan& plan, const Bandwidth& bandwidth);
nlohmann::ordered_json PlanJson(const ClusterPlan& plan, const Bandwidth& bandwidth);

// The essence in few lines, for a start.
std::string PlanSummary(const ClusterPlan& plan);

}  // namespace banyan::client
