// Requests against the limits of model and server; defaults filled in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/trace_context.h"
#include "proto/inference/v1/inference.pb.h"
#include "services/trunk/scheduler/request.h"
#include "services/trunk/server/model_facts.h"

namespace banyan::trunk {

inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 256;
inline constexpr int kMaxLogitBiases = 4096;

// 1..128 bytes of printable ASCII without spaces, so that it can stand in a log line.
absl::Status CheckRequestId(const std::string& request_id);
// "r-" and 16 hex digits, random.
std::string NewRequestId();

// Sampling parameters with the checkpoint's defaults for what is unset; a random seed where none
// is given. kInvalidArgument names the field, its value and the allowed range.
absl::StatusOr<SamplingParams> ResolveSampling(const inference::v1::SamplingParams& given,
                                               const ModelFacts& facts);

// What GetModelInfo reports: the values ResolveSampling takes for an empty message.
inference::v1::SamplingParams DefaultSampling(const ModelFacts& facts);

// Everything but the prompt, cheap enough for the thread that receives calls: all errors are
// kInvalidArgument (field, value, range), or kFailedPrecondition for stop strings without a
// tokenizer. The result lacks prompt_ids; max_new_tokens is what was asked for, or INT32_MAX.
absl::StatusOr<Request> ResolveRequest(const inference::v1::GenerateRequest& given,
                                       const ModelFacts& facts);

// Puts the prompt in and limits max_new_tokens to the rest of the context.
void SetPrompt(std::vector<int32_t> prompt_ids, const ModelFacts& facts, Request& request);

}  // namespace banyan::trunk
