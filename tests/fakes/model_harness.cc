#include "tests/fakes/model_harness.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "common/base/check.h"
#include "services/trunk/model/trunk_pack_builder.h"
#include "tests/fakes/backends.h"

namespace banyan::test {
namespace {

void CheckOk(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  CHECK(status.ok());
}

template <typename T>
T ValueOf(absl::StatusOr<T> value) {
  CheckOk(value.status());
  return *std::move(value);
}

template <typename T>
void Append(std::span<const T> values, std::vector<T>* to) {
  to->insert(to->end(), values.begin(), values.end());
}

}  // namespace

void RecordingObserver::Clear() { *this = RecordingObserver(static_cast<int32_t>(layers.size())); }
void RecordingObserver::OnEmbeddings(std::span<const float> hidden) { Append(hidden, &embeddings); }
void RecordingObserver::OnMixer(int32_t layer, std::span<const float> hidden) {
  Append(hidden, &layers[static_cast<size_t>(layer)].mixer);
}
void RecordingObserver::OnLayer(int32_t layer, std::span<const float> hidden) {
  Append(hidden, &layers[static_cast<size_t>(layer)].hidden);
}
void RecordingObserver::OnRouting(int32_t layer, std::span<const uint16_t> expert_ids,
                                  std::span<const float> weights) {
  Append(expert_ids, &layers[static_cast<size_t>(layer)].expert_ids);
  Append(weights, &layers[static_cast<size_t>(layer)].expert_weights);
}
void RecordingObserver::OnFinalNorm(std::span<const float> hidden) { Append(hidden, &final_norm); }

std::vector<int32_t> ModelHarness::Ways() {
  const bool two = IsCpu(DefaultBackend()) || AvailableGpus() >= 2;
  return two ? std::vector<int32_t>{1, 2} : std::vector<int32_t>{1};
}

std::string ModelHarness::DefaultBackend() {
  const char* const name = std::getenv("BANYAN_TEST_BACKEND");
  return name != nullptr ? name : "auto";
}

trunk::TrunkFormat ModelHarness::DefaultTrunkFormat() {
  const char* const name = std::getenv("BANYAN_TEST_TRUNK_FORMAT");
  CHECK(name == nullptr || std::string(name) == "int8");
  return name != nullptr ? trunk::TrunkFormat::kInt8 : trunk::TrunkFormat::kBf16;
}

DType ModelHarness::DefaultKvDType() {
  const char* const name = std::getenv("BANYAN_TEST_KV_FORMAT");
  CHECK(name == nullptr || std::string(name) == "bf16");
  return name != nullptr ? DType::kBF16 : DType::kF32;
}

DType ModelHarness::DefaultExpertActivations() {
  const char* const name = std::getenv("BANYAN_TEST_EXPERT_ACTIVATIONS");
  CHECK(name == nullptr || std::string(name) == "bf16");
  return name != nullptr ? DType::kBF16 : DType::kF32;
}

int32_t ModelHarness::DefaultHalvedRows() {
  const char* const rows = std::getenv("BANYAN_TEST_HALVED_ROWS");
  return rows != nullptr ? std::atoi(rows) : 0;
}

ModelHarness::ModelHarness(const Options& options)
    : config_(ValueOf(LoadModelConfig(options.directory))),
      checkpoint_(ValueOf(Checkpoint::Open(options.directory))),
      transport_(std::make_unique<LocalTransport>(*checkpoint_, config_)),
      observer_(options.observe ? std::make_unique<RecordingObserver>(config_.num_hidden_layers)
                                : nullptr),
      random_(options.page_seed) {
  const bool own_experts = options.own_experts.back() > 0;
  const trunk::DecoderOptions decoder_options = {
      .max_rows = options.max_rows,
      .num_slots = options.num_slots,
      .num_state_copies = options.num_state_copies,
      .num_pages = options.num_pages,
      .max_logits_rows = 64,
      .trunk_format = options.trunk_format,
      .kv_dtype = options.kv_dtype,
      .expert_activations = own_experts ? DType::kBF16 : options.expert_activations,
      .halved_rows = own_experts ? 0 : options.halved_rows,
      .prompt_experts = own_experts};
  if (!options.pool_dir.empty()) {
    const trunk::TrunkPackRequest request = {checkpoint_.get(), &config_, options.trunk_format,
                                             options.pool_dir};
    WorkerPool pool({.num_threads = 1});
    pack_.emplace(
        ValueOf(trunk::EnsureTrunkPack(request, ValueOf(trunk::WantedTrunkPackHeader(request)),
                                       pool, [](const PackProgress&) { return true; }))
            .pack);
  }
  const TrunkPack* const pack = pack_ ? &*pack_ : nullptr;
  const int32_t ranks = options.tensor_parallel;
  for (int32_t rank = 0; rank < ranks; ++rank) {
    pools_.push_back(std::make_unique<WorkerPool>(
        WorkerPool::Options{.num_threads = std::max(1, options.num_threads / ranks)}));
  }
  backends_.resize(pools_.size());
  if (ranks == 1) {
    if (options.group_of_one) group_ = MakeGroup(options.backend, 1);
    backends_[0] = MakeBackend(options.backend, pools_[0].get(),
                               group_ == nullptr ? nullptr : group_->rank(0));
    decoder_ = ValueOf(trunk::Decoder::Create(config_, decoder_options, *checkpoint_,
                                              backends_[0].get(), transport_.get(), observer_.get(),
                                              /*rank=*/{}, {.pack = pack}));
    forward_pass_ = decoder_.get();
    if (own_experts) {
      packed_ = PackExperts(*checkpoint_, config_, options.pool_format);
      for (const std::span<const std::byte> layer : packed_->layers) {
        CheckOk(backends_[0]->MapHost(layer).status());
      }
      packed_->pool.own_experts = options.own_experts;
      packed_->pool.long_prompt_tokens = options.long_prompt_tokens;
      decoder_->ComputePromptExperts(packed_->pool);
    }
  } else {
    CHECK(!own_experts);
    group_ = MakeGroup(options.backend, ranks);
    threads_ = std::make_unique<trunk::RankThreads>(ranks, absl::ZeroDuration());
    threads_->Run([&](int32_t rank) {
      const auto i = static_cast<size_t>(rank);
      backends_[i] = MakeBackend(options.backend, pools_[i].get(), group_->rank(rank));
    });
    parallel_decoder_ = ValueOf(
        trunk::ParallelDecoder::Create(config_, decoder_options, *checkpoint_, backends_,
                                       threads_.get(), transport_.get(), observer_.get(), pack));
    forward_pass_ = parallel_decoder_.get();
  }
  free_pages_.resize(static_cast<size_t>(options.num_pages));
  std::iota(free_pages_.begin(), free_pages_.end(), 0);
  std::shuffle(free_pages_.begin(), free_pages_.end(), random_);
  free_slots_.resize(static_cast<size_t>(options.num_slots));
  std::iota(free_slots_.begin(), free_slots_.end(), 0);
  std::shuffle(free_slots_.begin(), free_slots_.end(), random_);
}

TestSequence ModelHarness::NewSequence(size_t prompt_tokens) {
  CHECK(!free_slots_.empty());
  TestSequence sequence;
  sequence.prompt_tokens = static_cast<int32_t>(prompt_tokens);
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  return sequence;
}

void ModelHarness::Release(TestSequence* sequence) {
  free_slots_.insert(free_slots_.begin(), sequence->slot);
  free_pages_.insert(free_pages_.begin(), sequence->pages.begin(), sequence->pages.end());
  *sequence = TestSequence();
}

absl::Status ModelHarness::Forward(const std::vector<Piece>& pieces) {
  std::vector<int32_t> tokens;
  std::vector<trunk::StepSegment> segments;
  for (const Piece& piece : pieces) {
    TestSequence& sequence = *piece.sequence;
    const auto num_rows = static_cast<int32_t>(piece.tokens.size());
    while (static_cast<int32_t>(sequence.pages.size()) * trunk::kPageTokens <
           sequence.position + num_rows) {
      CHECK(!free_pages_.empty());
      sequence.pages.push_back(free_pages_.back());
      free_pages_.pop_back();
    }
    segments.push_back({.first_row = static_cast<int32_t>(tokens.size()),
                        .num_rows = num_rows,
                        .first_position = sequence.position,
                        .slot = sequence.slot,
                        .pages = sequence.pages,
                        .chunked = piece.chunked,
                        .prompt_tokens = piece.chunked ? sequence.prompt_tokens : 0});
    tokens.insert(tokens.end(), piece.tokens.begin(), piece.tokens.end());
    sequence.position += num_rows;
  }
  return forward_pass_->Forward({.step_id = step_id_++, .token_ids = tokens, .segments = segments});
}

std::vector<float> ModelHarness::Run(const std::vector<Piece>& pieces, Rows rows) {
  CheckOk(Forward(pieces));
  std::vector<int32_t> wanted;
  int32_t row = 0;
  for (const Piece& piece : pieces) {
    for (size_t i = 0; i < piece.tokens.size(); ++i, ++row) {
      if (rows == Rows::kAll || i + 1 == piece.tokens.size()) wanted.push_back(row);
    }
  }
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  std::vector<float> logits(wanted.size() * vocab);
  const auto most = static_cast<size_t>(forward_pass_->limits().max_logits_rows);
  for (size_t first = 0; first < wanted.size(); first += most) {
    const size_t count = std::min(most, wanted.size() - first);
    CheckOk(forward_pass_->ComputeLogits(std::span(wanted).subspan(first, count),
                                         std::span(logits).subspan(first * vocab, count * vocab)));
  }
  return logits;
}

int32_t ArgMax(const float* logits, int32_t n) {
  return static_cast<int32_t>(std::max_element(logits, logits + n) - logits);
}

}  // namespace banyan::test
