#include "services/trunk/model/decoder.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/plan/tensor_classes.h"
#include "common/plan/trunk_arena.h"
#include "services/trunk/model/activations.h"
#include "services/trunk/model/gated_attention.h"
#include "services/trunk/model/gated_delta_net.h"
#include "services/trunk/model/moe_block.h"
#include "services/trunk/model/step_halves.h"
#include "services/trunk/model/step_planner.h"
#include "services/trunk/model/weights.h"
#include "services/trunk/state/kv_cache.h"
#include "services/trunk/state/recurrent_state.h"

namespace banyan::trunk {
namespace {

StepPlanner::Options PlannerOptionsOf(const ModelConfig& config, const DecoderOptions& options) {
  return {.max_rows = options.max_rows,
          .num_slots = options.num_slots,
          .num_pages = options.num_pages,
          .max_position = MaxPositionOf(config, options),
          .vocab_size = config.vocab_size,
          .rotary_dim = config.rotary_dim,
          .rope_theta = config.rope_theta};
}

absl::Status CheckOptions(const ModelConfig& config, const DecoderOptions& options) {
  const std::pair<const char*, int32_t> positive[] = {{"max_rows", options.max_rows},
                                                      {"num_slots", options.num_slots},
                                                      {"num_pages", options.num_pages},
                                                      {"max_logits_rows", options.max_logits_rows}};
  for (const auto& [name, value] : positive) {
    if (value < 1) return InvalidArgumentF("decoder: {} is {}, expected at least 1", name, value);
  }
  if (options.halved_rows < 0) {
    return InvalidArgumentF("decoder: halved_rows is {}, expected at least 0", options.halved_rows);
  }
  if (options.num_state_copies < 0) {
    return InvalidArgumentF("decoder: num_state_copies is {}, expected at least 0",
                            options.num_state_copies);
  }
  if (options.max_context_tokens < 0 ||
      options.max_context_tokens > config.max_position_embeddings) {
    return InvalidArgumentF(
        "decoder: max_context_tokens is {}, expected 0 to {} (max_position_embeddings)",
        options.max_context_tokens, config.max_position_embeddings);
  }
  return absl::OkStatus();
}

}  // namespace

class Decoder::Impl {
 public:
  Impl(const ModelConfig& config, const DecoderOptions& options, Backend* backend,
       ExpertTransport* experts, DecoderObserver* observer, const DecoderRank& rank)
      : rank_(rank),
        config_(RankConfig(config, rank.tensor.size)),
        router_{.num_experts = config.num_experts,
                .top_k = config.num_experts_per_tok,
                .norm_topk_prob = config.norm_topk_prob},
        attention_(AttentionShapeOf(config_, options)),
        delta_net_(DeltaNetShapeOf(config_)),
        planner_(PlannerOptionsOf(config, options)),
        halves_(std::min(options.max_rows, options.num_slots)),
        // What an observer sees are whole steps, and all ranks run them in the same way.
        halved_rows_(
            HasHalves(options) && observer == nullptr && rank.may_record ? options.halved_rows : 0),
        buffer_rows_(BufferRows(options)),
        backend_(backend),
        experts_(experts),
        observer_(observer) {
    limits_ = {.max_rows = options.max_rows,
               .num_slots = options.num_slots,
               .num_pages = options.num_pages,
               .max_logits_rows = options.max_logits_rows,
               .max_top_logits = kMaxTopLogits,
               .vocab_size = config_.vocab_size,
               .max_position = MaxPositionOf(config, options)};
  }

  // `config` is the whole model's.
  absl::Status Allocate(const ModelConfig& config, const DecoderOptions& options,
                        const Checkpoint& checkpoint, const TrunkSources& sources) {
    RETURN_IF_ERROR(backend_->SetAside(TrunkArena(
        config_, options,
        TrunkWeightSizesOf(checkpoint, config, options.trunk_format, rank_.tensor.size))));
    ASSIGN_OR_RETURN(weights_, LoadTrunkWeights(checkpoint, config, options.trunk_format,
                                                rank_.tensor, sources, backend_));
    int32_t linear_layers = 0;
    int32_t full_layers = 0;
    for (const LayerWeights& layer : weights_.layers) {
      layer_bytes_ += LayerWeightBytes(layer);
      const bool linear = std::holds_alternative<LinearAttentionWeights>(layer.mixer);
      mixer_index_.push_back(linear ? linear_layers++ : full_layers++);
    }
    ASSIGN_OR_RETURN(kv_cache_,
                     KvCache::Create(attention_, CountMixers(config_, MixerKind::kFullAttention),
                                     options.num_pages, backend_));
    ASSIGN_OR_RETURN(
        recurrent_state_,
        RecurrentState::Create(delta_net_, CountMixers(config_, MixerKind::kLinearAttention),
                               options.num_slots + options.num_state_copies, backend_));
    state_history_.emplace(&recurrent_state_, options.num_slots, options.num_state_copies,
                           backend_);
    sizes_ = ActivationSizesOf(config_, options);
    RETURN_IF_ERROR(PlaceActivations(sizes_, backend_, &activations_));
    RETURN_IF_ERROR(LendRowsMemory(options));
    head_rows_.reserve(static_cast<size_t>(options.max_logits_rows));
    if (observer_ != nullptr) {
      observed_.resize(static_cast<size_t>(options.max_rows) *
                       static_cast<size_t>(config_.hidden_size));
    }
    return backend_->Reserve(OpLimitsOf(config_, options));
  }

  const Limits& limits() const { return limits_; }

  void ReadAnswersOf(const Impl& asker) {
    Shared<float>& routed = activations_.routed;
    const bool on_host = routed.device == routed.host;
    routed.host = asker.activations_.routed.host;
    if (on_host) routed.device = routed.host;
  }

  void ComputePromptExperts(PromptExpertPool pool) {
    CHECK(asks() && halved_rows_ == 0);
    prompt_experts_.emplace(config_, limits_.max_rows, std::move(pool));
  }

  absl::Status Fault() { return backend_->Check(); }
  uint64_t weight_bytes_read() const { return weight_bytes_read_; }
  uint64_t expert_bytes_read() const { return prompt_experts_ ? prompt_experts_->bytes_read() : 0; }
  StateHistory& state_history() { return *state_history_; }

  absl::Status Forward(const Step& step) {
    head_ran_ = false;
    const StepPlan& plan = planner_.Build(step);
    num_rows_ = first_rows_ = plan.num_rows;
    if (num_rows_ == 0) return absl::OkStatus();
    if (halved_rows_ > 0 && num_rows_ >= halved_rows_ && halves_.Cut(plan)) {
      RETURN_IF_ERROR(RunHalves(step));
      return Ended();
    }
    own_experts_ =
        prompt_experts_ && prompt_experts_->BeginStep(plan) ? &*prompt_experts_ : nullptr;
    backend_->BeginStep(plan);
    const Backend::Recording recording = observer_ == nullptr && rank_.may_record
                                             ? backend_->BeginRecording()
                                             : Backend::Recording::kNo;
    whole_ = {num_rows_, activations_};
    if (recording == Backend::Recording::kNo) {
      RETURN_IF_ERROR(RunInterleaved(step));
      return Ended();
    }
    if (recording == Backend::Recording::kRecord) QueueWholeStep();
    RETURN_IF_ERROR(ServeExperts(step));
    CountWeights();
    head_ran_ = EndsWithHead();
    if (head_ran_) CountHead();
    // RunHead waits for the rest. Not where ranks read one another's memory, which may change.
    return rank_.answers == nullptr ? absl::OkStatus() : backend_->Synchronize();
  }

  absl::Status Ended() {
    CountWeights();
    return backend_->Synchronize();
  }

  // One product for all rows, unless it came with the step: the full ones first.
  absl::Status RunHead(const HeadQuery& query) {
    const auto num_full = static_cast<int32_t>(query.full_rows.size());
    const auto num_top = static_cast<int32_t>(query.top_rows.size());
    CHECK(num_full + num_top <= limits_.max_logits_rows);
    if (num_full + num_top == 0) return absl::OkStatus();
    const Activations& a = activations_;
    if (!head_ran_ || !AreFirst(query.full_rows, 0) || !AreFirst(query.top_rows, num_full)) {
      head_ran_ = false;  // the logits are others from here on
      GatherHeadRows(query.full_rows, 0);
      GatherHeadRows(query.top_rows, num_full);
      QueueHead(num_full + num_top, a.logits_rows);
      CountHead();
    }
    if (num_top > 0) QueueTopLogits(query, a.logits + int64_t{num_full} * limits_.vocab_size);
    if (num_full > 0) {
      constexpr size_t kSize = sizeof(float);
      RETURN_IF_ERROR(backend_->ReadBackRows(
          a.logits, static_cast<size_t>(limits_.vocab_size) * kSize, num_full,
          static_cast<size_t>(query.stride) * kSize, query.logits));
    }
    return num_top > 0 ? TakeTopLogits(query) : absl::OkStatus();
  }

 private:
  // The rows that operations are about: a step's, or those of a half of it.
  struct Part {
    int32_t num_rows = 0;
    Activations activations;  // from the first of them on
  };

  bool asks() const { return rank_.tensor.rank == 0; }

  void CountWeights() {
    weight_bytes_read_ += layer_bytes_;
    if (asks()) {  // a row of the embedding is on one rank
      weight_bytes_read_ += RowBytes(weights_.embed_tokens) * static_cast<uint64_t>(num_rows_);
    }
  }
  void CountHead() {
    weight_bytes_read_ += RowBytes(weights_.lm_head) * static_cast<uint64_t>(weights_.lm_head.rows);
  }

  // Every sequence of a recorded step wants its next token.
  bool EndsWithHead() const { return num_rows_ <= limits_.max_logits_rows; }

  // Whether these are rows first, first + 1, ... of the step.
  static bool AreFirst(std::span<const int32_t> rows, int32_t first) {
    for (const int32_t row : rows) {
      if (row != first++) return false;
    }
    return true;
  }

  void QueueHead(int32_t num_rows, const float* x) {
    const LinearArgs head[] = {{.x = x, .w = &weights_.lm_head, .y = activations_.logits}};
    backend_->Linear(num_rows, head);
  }

  // Final hidden states of rows of the step, from row `to` of the head's input on.
  void GatherHeadRows(std::span<const int32_t> rows, int32_t to) {
    if (rows.empty()) return;
    head_rows_.clear();
    for (const int32_t row : rows) {
      CHECK(row >= 0 && row < num_rows_);
      head_rows_.push_back(row < first_rows_ ? row : row - first_rows_ + second_row_);
    }
    backend_->GatherRows(head_rows_, config_.hidden_size, activations_.final_out,
                         activations_.logits_rows + int64_t{to} * config_.hidden_size);
  }

  void QueueTopLogits(const HeadQuery& query, const float* logits) {
    const auto num_rows = static_cast<int32_t>(query.top_rows.size());
    CHECK(query.k <= limits_.max_top_logits);
    const size_t found = query.top_rows.size() * static_cast<size_t>(query.k);
    CHECK(query.top.size() == found && query.bounded.size() == query.top_rows.size());
    const Activations& a = activations_;
    backend_->TopLogits(num_rows, {.vocab_size = limits_.vocab_size,
                                   .num_ids = query.num_ids,
                                   .k = query.k,
                                   .logits = logits,
                                   .scores = a.top_scores,
                                   .ids = a.top_ids,
                                   .bounded = a.top_bounded});
    const SharedCopy copies[] = {{a.top_scores.buffer(), found * sizeof(float)},
                                 {a.top_ids.buffer(), found * sizeof(int32_t)},
                                 {a.top_bounded.buffer(), query.bounded.size() * sizeof(int32_t)}};
    backend_->CopyToHost(copies);
  }

  absl::Status TakeTopLogits(const HeadQuery& query) {
    RETURN_IF_ERROR(backend_->AwaitHost());
    const Activations& a = activations_;
    for (size_t i = 0; i < query.top.size(); ++i) {
      query.top[i] = {a.top_scores.host[i], a.top_ids.host[i]};
    }
    for (size_t i = 0; i < query.bounded.size(); ++i) {
      query.bounded[i] = a.top_bounded.host[i] != 0 ? 1 : 0;
    }
    return absl::OkStatus();
  }

  void QueueEmbedding(const Part& part) {
    backend_->Embed(weights_.embed_tokens, part.activations.hidden);
    backend_->AllReduce(part.activations.hidden, int64_t{part.num_rows} * config_.hidden_size);
  }

  absl::Status LendRowsMemory(const DecoderOptions& options) {
    const SharedBuffer& own = activations_.expert_rows;
    const size_t bytes = ExpertRowBlockBytes(sizes_, options, own.device == own.host);
    if (!asks() || bytes == 0) return absl::OkStatus();
    std::vector<std::shared_ptr<std::byte>> blocks(static_cast<size_t>(ExpertRowBlocks(options)));
    for (std::shared_ptr<std::byte>& block : blocks) {
      ASSIGN_OR_RETURN(block, backend_->AllocateHost(bytes));
    }
    experts_->LendRowsMemory(std::move(blocks), bytes);
    return absl::OkStatus();
  }

  // The rows of the next call go to memory that is sent as it lies where there is some, else to
  // `own`. What is recorded has places of its own, and few rows.
  void PlaceRows(const SharedBuffer& own, Part* part) {
    SharedBuffer& rows = part->activations.expert_rows;
    rows = own;
    if (!asks()) return;
    std::byte* const sent = experts_->TakeRowsMemory();
    if (sent == nullptr) return;
    rows.host = sent;
    if (own.device == own.host) rows.device = sent;
  }

  // Rows to the experts; nothing to do for ranks that do not ask them.
  absl::Status Ask(const Step& step, int32_t layer, const Part& part) {
    if (!asks()) return absl::OkStatus();
    return DispatchRows(router_, step, layer, part.num_rows, part.activations, backend_, experts_,
                        own_experts_);
  }

  // The experts' answer, which every rank has or fails with. `asked`: what Ask returned.
  absl::Status AwaitAnswer(absl::Status asked, const Part& part) {
    if (!asks()) {
      return rank_.answers->Take(rank_.tensor.rank, [this] { return backend_->Check(); });
    }
    if (asked.ok()) asked = experts_->Combine(part.activations.routed.host);
    if (rank_.answers != nullptr) rank_.answers->Publish(asked);
    return asked;
  }

  const MoeWeights* MoeOf(int32_t layer) const {
    return std::get_if<MoeWeights>(&weights_.layers[static_cast<size_t>(layer)].mlp);
  }

  // The layer up to the call of the experts; all of it where the layer is dense.
  void QueueLayer(int32_t layer, const Part& part) {
    const Activations& a = part.activations;
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    // After experts the norm came with what they answered.
    if (layer == 0 || MoeOf(layer - 1) == nullptr) {
      Norm(weights.input_norm, nullptr, part, a.normed);
    }
    if (const auto* mixer = std::get_if<LinearAttentionWeights>(&weights.mixer)) {
      RunGatedDeltaNet(delta_net_, *mixer,
                       recurrent_state_.layer(mixer_index_[static_cast<size_t>(layer)]),
                       part.num_rows, a, backend_);
    } else {
      RunGatedAttention(attention_, std::get<FullAttentionWeights>(weights.mixer),
                        kv_cache_.layer(mixer_index_[static_cast<size_t>(layer)]), part.num_rows, a,
                        backend_);
    }
    Norm(weights.post_attention_norm, a.mixer_out, part, a.normed);
    if (const MoeWeights* moe = MoeOf(layer)) {
      QueueRouting(router_, *moe, part.num_rows, asks(), a, backend_);
    } else if (observer_ == nullptr) {
      RunDenseMlp(std::get<FfnWeights>(weights.mlp), part.num_rows, a, backend_);
    }
  }

  bool IsLast(int32_t layer) const { return layer + 1 == config_.num_hidden_layers; }

  // The answer of a layer's experts and the norm after it: the next layer's, or the last.
  void QueueExpertSums(int32_t layer, const MoeWeights& moe, const Part& part) {
    const Activations& a = part.activations;
    NextNorm norm = {weights_.final_norm, config_.rms_norm_eps, a.final_out};
    if (!IsLast(layer)) {
      const LayerWeights& next = weights_.layers[static_cast<size_t>(layer) + 1];
      norm.weight = next.input_norm;
      norm.out = a.normed;
      if (const auto* mixer = std::get_if<LinearAttentionWeights>(&next.mixer)) {
        const Matrix* const in[] = {&mixer->in_proj_qkvz};
        backend_->WillRead(in);
      } else {
        const auto& full = std::get<FullAttentionWeights>(next.mixer);
        const Matrix* const in[] = {&full.q_proj, &full.k_proj, &full.v_proj};
        backend_->WillRead(in);
      }
    } else {
      const Matrix* const in[] = {&weights_.lm_head};
      backend_->WillRead(in);
    }
    QueueCombine(moe, norm, part.num_rows, a, backend_);
  }

  void QueueFinalNorm(const Part& part) {
    if (MoeOf(config_.num_hidden_layers - 1) != nullptr) return;  // came with the experts' answer
    Norm(weights_.final_norm, nullptr, part, part.activations.final_out);
  }

  // Operations in the order of the layers, the host's part after each.
  absl::Status RunInterleaved(const Step& step) {
    const Activations& a = whole_.activations;
    QueueEmbedding(whole_);
    if (observer_ != nullptr) {
      ASSIGN_OR_RETURN(const auto hidden, Observe(a.hidden));
      observer_->OnEmbeddings(hidden);
    }
    for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const MoeWeights* const moe = MoeOf(layer);
      if (moe != nullptr) PlaceRows(activations_.expert_rows, &whole_);
      QueueLayer(layer, whole_);
      if (observer_ != nullptr) {
        ASSIGN_OR_RETURN(const auto hidden, Observe(a.hidden));
        observer_->OnMixer(layer, hidden);
        if (moe == nullptr) {
          RunDenseMlp(std::get<FfnWeights>(weights_.layers[static_cast<size_t>(layer)].mlp),
                      num_rows_, a, backend_);
        }
      }
      if (moe != nullptr) {
        absl::Status asked = Ask(step, layer, whole_);
        // After a failure too: the other ranks, who learn of it in AwaitAnswer, have queued as
        // much.
        QueueSharedExpert(*moe, num_rows_, a, backend_);
        if (asked.ok() && own_experts_ != nullptr) {
          own_experts_->Queue(layer, num_rows_, a, backend_);
        }
        RETURN_IF_ERROR(AwaitAnswer(std::move(asked), whole_));
        backend_->ReleaseToDevice();
        QueueExpertSums(layer, *moe, whole_);
        if (own_experts_ != nullptr) own_experts_->Announce(layer, backend_);
      }
      if (observer_ != nullptr) RETURN_IF_ERROR(ObserveLayer(layer));
    }
    QueueFinalNorm(whole_);
    if (observer_ != nullptr) {
      ASSIGN_OR_RETURN(const auto hidden, Observe(a.final_out));
      observer_->OnFinalNorm(hidden);
    }
    return absl::OkStatus();
  }

  // The halves of a step in turn: while the experts have the rows of one, the other goes from the
  // answer to its last rows to its next ones. So they always have a call that waits, and each
  // layer's state is the first half's before it is the second's.
  absl::Status RunHalves(const Step& step) {
    first_rows_ = halves_.half(0).num_rows;
    second_row_ = (first_rows_ + kHalfGridRows - 1) / kHalfGridRows * kHalfGridRows;
    const Activations second = ActivationsFrom(activations_, sizes_, buffer_rows_, second_row_);
    Part parts[2] = {{first_rows_, activations_}, {num_rows_ - first_rows_, second}};
    const SharedBuffer own_rows[2] = {activations_.expert_rows, second.expert_rows};
    for (int32_t half : {0, 1}) {
      backend_->BeginPart(half, halves_.half(half));
      QueueEmbedding(parts[half]);
    }
    // After a failure nothing more is asked. It counts where the next answer would come: there the
    // other ranks learn of it, and have queued as much.
    absl::Status asked;
    for (int32_t layer = 0; layer <= config_.num_hidden_layers; ++layer) {
      for (int32_t half : {0, 1}) {
        Part& part = parts[half];
        backend_->UsePart(half);
        if (const MoeWeights* const moe = layer > 0 ? MoeOf(layer - 1) : nullptr) {
          if (asked = AwaitAnswer(std::move(asked), part); !asked.ok()) return GiveUpHalves(asked);
          backend_->ReleaseToDevice();
          QueueExpertSums(layer - 1, *moe, part);
        }
        if (layer == config_.num_hidden_layers) {
          QueueFinalNorm(part);
          continue;
        }
        const MoeWeights* const moe = MoeOf(layer);
        if (moe != nullptr) PlaceRows(own_rows[half], &part);
        QueueLayer(layer, part);
        if (moe == nullptr) continue;
        if (asked.ok()) asked = Ask(step, layer, part);
        QueueSharedExpert(*moe, part.num_rows, part.activations, backend_);
      }
    }
    return absl::OkStatus();
  }

  // Nothing of the step is under way when this returns.
  absl::Status GiveUpHalves(const absl::Status& why) {
    if (asks()) experts_->Abandon();
    backend_->Synchronize().IgnoreError();
    return why;
  }

  // The device's part of a whole step, ahead of the host's.
  void QueueWholeStep() {
    QueueEmbedding(whole_);
    for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      QueueLayer(layer, whole_);
      if (const MoeWeights* moe = MoeOf(layer)) {
        QueueSharedExpert(*moe, num_rows_, whole_.activations, backend_);
        QueueExpertSums(layer, *moe, whole_);
      }
    }
    QueueFinalNorm(whole_);
    if (EndsWithHead()) QueueHead(num_rows_, activations_.final_out);
    backend_->EndRecording();
  }

  // The host's part of a step that the device is running.
  absl::Status ServeExperts(const Step& step) {
    absl::Status status;
    for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      if (MoeOf(layer) == nullptr) continue;
      if (status.ok()) status = AwaitAnswer(Ask(step, layer, whole_), whole_);
      // After a failure the device runs on to the end with whatever lies there.
      backend_->ReleaseToDevice();
    }
    if (!status.ok()) backend_->Synchronize().IgnoreError();
    return status;
  }

  void Norm(const float* weight, const float* addend, const Part& part, float* out) {
    backend_->RmsNorm(part.num_rows, config_.hidden_size, config_.rms_norm_eps, weight, addend,
                      part.activations.hidden, out);
  }

  // A host copy of [num_rows, hidden_size].
  absl::StatusOr<std::span<const float>> Observe(const float* x) {
    const std::span<float> out(observed_.data(), static_cast<size_t>(num_rows_) *
                                                     static_cast<size_t>(config_.hidden_size));
    RETURN_IF_ERROR(backend_->ReadBack(x, out.size_bytes(), out.data()));
    return std::span<const float>(out);
  }

  absl::Status ObserveLayer(int32_t layer) {
    if (config_.mlps[static_cast<size_t>(layer)] == MlpKind::kMoe) {
      const auto count =
          static_cast<size_t>(num_rows_) * static_cast<size_t>(config_.num_experts_per_tok);
      observer_->OnRouting(layer, {activations_.expert_ids.host, count},
                           {activations_.expert_weights.host, count});
    }
    ASSIGN_OR_RETURN(const auto hidden, Observe(activations_.hidden));
    observer_->OnLayer(layer, hidden);
    return absl::OkStatus();
  }

  const DecoderRank rank_;
  const ModelConfig config_;  // of this rank
  const RouterOptions router_;
  const AttentionShape attention_;
  const DeltaNetShape delta_net_;
  StepPlanner planner_;
  StepHalves halves_;
  const int32_t halved_rows_;  // steps of so many run as halves; 0: none
  const int32_t buffer_rows_;
  Backend* const backend_;
  ExpertTransport* const experts_;
  DecoderObserver* const observer_;
  Limits limits_;
  TrunkWeights weights_;
  std::vector<int32_t> mixer_index_;  // of each layer among those of its kind
  KvCache kv_cache_;
  RecurrentState recurrent_state_;
  std::optional<StateHistory> state_history_;
  std::optional<PromptExperts> prompt_experts_;
  PromptExperts* own_experts_ = nullptr;  // in this step
  ActivationSizes sizes_;
  Activations activations_;
  Part whole_;  // of a step that is not cut
  std::vector<float> observed_;
  int32_t num_rows_ = 0;    // of the last step
  int32_t first_rows_ = 0;  // of its first half, or all of them
  int32_t second_row_ = 0;  // where in the buffers its second half begins
  bool head_ran_ = false;   // the step's logits, row by row, are in activations_.logits
  std::vector<int32_t> head_rows_;
  uint64_t layer_bytes_ = 0;  // read by one step, embedding and head apart
  uint64_t weight_bytes_read_ = 0;
};

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;

DecoderMemory Decoder::Plan(const ModelConfig& config, const DecoderOptions& options,
                            const Backend& backend) {
  const ModelConfig own = RankConfig(config, options.tensor_parallel);
  return PlanDecoderMemory(own, options, backend.ScratchBytes(OpLimitsOf(own, options)));
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const ModelConfig& config, const DecoderOptions& options, const Checkpoint& checkpoint,
    Backend* backend, ExpertTransport* experts, DecoderObserver* observer, const DecoderRank& rank,
    const TrunkSources& sources) {
  RETURN_IF_ERROR(CheckOptions(config, options));
  RETURN_IF_ERROR(CheckTensorParallel(config, rank.tensor.size));
  CHECK(options.tensor_parallel == rank.tensor.size);
  CHECK((rank.answers != nullptr) == (rank.tensor.size > 1));
  auto impl = std::make_unique<Impl>(config, options, backend, experts, observer, rank);
  RETURN_IF_ERROR(impl->Allocate(config, options, checkpoint, sources));
  return std::unique_ptr<Decoder>(new Decoder(std::move(impl)));
}

const ForwardPass::Limits& Decoder::limits() const { return impl_->limits(); }

absl::Status Decoder::Forward(const Step& step) { return impl_->Forward(step); }

absl::Status Decoder::RunHead(const HeadQuery& query) { return impl_->RunHead(query); }

void Decoder::ReadAnswersOf(const Decoder& asker) { impl_->ReadAnswersOf(*asker.impl_); }

void Decoder::ComputePromptExperts(PromptExpertPool pool) {
  impl_->ComputePromptExperts(std::move(pool));
}

absl::Status Decoder::Fault() { return impl_->Fault(); }

uint64_t Decoder::weight_bytes_read() const { return impl_->weight_bytes_read(); }

uint64_t Decoder::expert_bytes_read() const { return impl_->expert_bytes_read(); }

StateHistory& Decoder::state_history() { return impl_->state_history(); }

}  // namespace banyan::trunk
