// A decoder for each of several devices that compute one model together: heads, widths and
// vocabulary are divided (common/plan/tensor_parallel.h). Every rank runs the whole forward pass
// over its slices, on a thread of its own, and the backends add up what the slices give. Rank 0
// alone asks the experts; the others read their answer where it has it (expert_answers.h). Each
// rank computes the logits of its part of the vocabulary, straight to their place in host memory;
// of the highest ones each has its own, from which those of all are taken.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/plan/decoder_memory.h"
#include "services/trunk/engine/forward_pass.h"
#include "services/trunk/experts/expert_transport.h"
#include "services/trunk/model/decoder.h"
#include "services/trunk/model/expert_answers.h"
#include "services/trunk/model/rank_threads.h"
#include "services/trunk/ops/ops.h"

namespace banyan::trunk {

class ParallelDecoder : public ForwardPass {
 public:
  // A rank for each backend, which was made on its thread and whose AllReduce reaches the others.
  // All are borrowed and outlive the decoder; `threads` has as many, and others may use it between
  // calls. `observer` (may be null) sees rank 0. `pack` (may be null) is the whole model's
  // (TrunkSources). Errors: CheckTensorParallel's and Decoder::Create's, of the first rank that has
  // one.
  static absl::StatusOr<std::unique_ptr<ParallelDecoder>> Create(
      const ModelConfig& config, const DecoderOptions& options, const Checkpoint& checkpoint,
      std::span<const std::unique_ptr<Backend>> backends, RankThreads* threads,
      ExpertTransport* experts, DecoderObserver* observer = nullptr,
      const TrunkPack* pack = nullptr);

  const Limits& limits() const override { return limits_; }
  // An error of the experts is every rank's, and the next step may run. A rank that fails alone
  // ends the step of all ranks, and all steps after it, with its status.
  absl::Status Forward(const Step& step) override;
  absl::Status RunHead(const HeadQuery& query) override;
  absl::Status Fault() override;
  uint64_t weight_bytes_read() const override;

 private:
  ParallelDecoder(int32_t size, RankThreads* threads);
  // Status of the first rank that failed.
  absl::Status FirstFailure() const;

  // The highest logits of a rank's part of the vocabulary.
  struct RankTop {
    int32_t first_id = 0;
    int32_t k = 0;                 // of each row
    std::vector<ScoredId> top;     // [max_logits_rows, max_top_logits]
    std::vector<uint8_t> bounded;  // [max_logits_rows]
  };
  HeadQuery RankQuery(const HeadQuery& query, size_t rank);
  void MergeTops(const HeadQuery& query);

  RankThreads* const threads_;
  ExpertAnswers answers_;
  std::vector<std::unique_ptr<Decoder>> decoders_;
  std::vector<absl::Status> statuses_;  // of each rank in the last call
  std::vector<RankTop> tops_;
  std::vector<ScoredId> merged_;  // of one row
  Limits limits_;
};

}  // namespace banyan::trunk
