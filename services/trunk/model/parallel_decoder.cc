#include "services/trunk/model/parallel_decoder.h"

#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/plan/tensor_parallel.h"

namespace banyan::trunk {

ParallelDecoder::ParallelDecoder(int32_t size, RankThreads* threads)
    : threads_(threads),
      answers_(size, threads->spin()),
      decoders_(static_cast<size_t>(size)),
      statuses_(static_cast<size_t>(size)) {}

absl::StatusOr<std::unique_ptr<ParallelDecoder>> ParallelDecoder::Create(
    const ModelConfig& config, const DecoderOptions& options, const Checkpoint& checkpoint,
    std::span<const std::unique_ptr<Backend>> backends, RankThreads* threads,
    ExpertTransport* experts, DecoderObserver* observer, const TrunkPack* pack) {
  const auto size = static_cast<int32_t>(backends.size());
  CHECK(size >= 2 && size == threads->size());
  RETURN_IF_ERROR(CheckTensorParallel(config, size));
  DecoderOptions own = options;
  own.tensor_parallel = size;
  std::unique_ptr<ParallelDecoder> out(new ParallelDecoder(size, threads));
  threads->Run([&](int32_t rank) {
    const auto i = static_cast<size_t>(rank);
    absl::StatusOr<std::unique_ptr<Decoder>> decoder = Decoder::Create(
        config, own, checkpoint, backends[i].get(), rank == 0 ? experts : nullptr,
        rank == 0 ? observer : nullptr,
        {.tensor = {rank, size}, .answers = &out->answers_, .may_record = observer == nullptr},
        {.pack = pack});
    out->statuses_[i] = decoder.status();
    if (decoder.ok()) out->decoders_[i] = *std::move(decoder);
  });
  RETURN_IF_ERROR(out->FirstFailure());
  for (size_t i = 1; i < out->decoders_.size(); ++i) {
    out->decoders_[i]->ReadAnswersOf(*out->decoders_[0]);
  }
  out->limits_ = out->decoders_[0]->limits();
  out->limits_.vocab_size = config.vocab_size;
  return out;
}

absl::Status ParallelDecoder::FirstFailure() const {
  for (const absl::Status& status : statuses_) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status ParallelDecoder::Forward(const Step& step) {
  answers_.BeginStep();
  threads_->Run([&](int32_t rank) {
    const auto i = static_cast<size_t>(rank);
    statuses_[i] = decoders_[i]->Forward(step);
    if (!statuses_[i].ok() && !answers_.told_failure()) answers_.Fail(statuses_[i]);
  });
  return FirstFailure();
}

absl::Status ParallelDecoder::ComputeLogits(std::span<const int32_t> rows,
                                            std::span<float> logits) {
  CHECK(logits.size() == rows.size() * static_cast<size_t>(limits_.vocab_size));
  threads_->Run([&](int32_t rank) {
    const auto i = static_cast<size_t>(rank);
    float* const own = logits.data() + rank * int64_t{decoders_[i]->limits().vocab_size};
    statuses_[i] = decoders_[i]->ComputeLogits(rows, limits_.vocab_size, own);
  });
  return FirstFailure();
}

absl::Status ParallelDecoder::Fault() {
  threads_->Run([&](int32_t rank) {
    const auto i = static_cast<size_t>(rank);
    statuses_[i] = decoders_[i]->Fault();
  });
  return FirstFailure();
}

uint64_t ParallelDecoder::weight_bytes_read() const {
  uint64_t bytes = 0;
  for (const auto& decoder : decoders_) bytes += decoder->weight_bytes_read();
  return bytes;
}

}  // namespace banyan::trunk
