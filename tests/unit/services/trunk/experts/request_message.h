// Rows as the message that any gRPC client sends, for layer 1 and in f32 both ways.
#pragma once

#include <cstdint>
#include <string>

#include "common/rpc/expert_frame.h"
#include "proto/expert/v1/expert.pb.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

namespace banyan::testing_experts {

inline expert::v1::ForwardRequest RequestMessage(uint64_t sequence, const Rows& rows) {
  const auto bytes = [](const auto& values) {
    return std::string(reinterpret_cast<const char*>(values.data()),
                       values.size() * sizeof(values[0]));
  };
  expert::v1::ForwardRequest request;
  request.set_sequence(sequence);
  request.set_layer(1);
  request.set_num_rows(static_cast<uint32_t>(rows.num_rows));
  request.set_top_k(kTopK);
  request.set_flags(kActivationsF32 | kReplyF32);
  request.set_expert_ids(bytes(rows.ids));
  request.set_weights(bytes(rows.weights));
  request.set_activations(bytes(rows.activations));
  return request;
}

}  // namespace banyan::testing_experts
