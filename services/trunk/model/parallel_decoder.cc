#include "services/trunk/model/parallel_decoder.h"

#include <algorithm>
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
  const auto rows = static_cast<size_t>(out->limits_.max_logits_rows);
  const auto most = static_cast<size_t>(out->limits_.max_top_logits);
  for (const auto& decoder : out->decoders_) {
    const auto part = static_cast<int32_t>(out->tops_.size());
    out->tops_.push_back({.first_id = part * decoder->limits().vocab_size,
                          .top = std::vector<ScoredId>(rows * most),
                          .bounded = std::vector<uint8_t>(rows)});
  }
  out->merged_.reserve(out->decoders_.size() * most);
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

absl::Status ParallelDecoder::RunHead(const HeadQuery& query) {
  threads_->Run([&](int32_t rank) {
    const auto i = static_cast<size_t>(rank);
    statuses_[i] = decoders_[i]->RunHead(RankQuery(query, i));
  });
  RETURN_IF_ERROR(FirstFailure());
  MergeTops(query);
  return absl::OkStatus();
}

HeadQuery ParallelDecoder::RankQuery(const HeadQuery& query, size_t rank) {
  RankTop& own = tops_[rank];
  HeadQuery out = query;
  if (out.logits != nullptr) out.logits += own.first_id;
  // A part may lie beyond the ids that count, or have fewer than are wanted.
  out.num_ids = std::clamp(query.num_ids - own.first_id, 0, decoders_[rank]->limits().vocab_size);
  own.k = out.k = std::min(query.k, out.num_ids);
  if (own.k == 0) out.top_rows = {};
  out.top = std::span(own.top).first(out.top_rows.size() * static_cast<size_t>(own.k));
  out.bounded = std::span(own.bounded).first(out.top_rows.size());
  return out;
}

void ParallelDecoder::MergeTops(const HeadQuery& query) {
  const auto k = static_cast<size_t>(query.k);
  for (size_t row = 0; row < query.top_rows.size(); ++row) {
    merged_.clear();
    query.bounded[row] = 1;
    for (const RankTop& own : tops_) {
      if (own.k == 0) continue;
      if (own.bounded[row] == 0) query.bounded[row] = 0;
      const auto count = static_cast<size_t>(own.k);
      for (const ScoredId& found : std::span(own.top).subspan(row * count, count)) {
        merged_.push_back({found.score, own.first_id + found.id});
      }
    }
    if (query.bounded[row] == 0) continue;
    CHECK(merged_.size() >= k);
    std::partial_sort(merged_.begin(), merged_.begin() + static_cast<ptrdiff_t>(k), merged_.end(),
                      ScoresHigher);
    std::copy_n(merged_.begin(), k, query.top.begin() + static_cast<ptrdiff_t>(row * k));
  }
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
