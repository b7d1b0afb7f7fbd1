// A decoder over a real checkpoint with the experts in this process, for tests and benchmarks.
//   ModelHarness model({.directory = demo});
//   TestSequence sequence = model.NewSequence();
//   std::vector<float> logits = model.Run({{&sequence, prompt_ids, true}});
// Anything that fails aborts with the status.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "common/config/model_config.h"
#include "common/io/checkpoint.h"
#include "common/io/trunk_pack.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/prompt_experts.h"
#include "common/quant/pool_format.h"
#include "services/trunk/model/decoder.h"
#include "services/trunk/model/parallel_decoder.h"
#include "services/trunk/model/rank_threads.h"
#include "services/trunk/ops/collective/collective.h"
#include "services/trunk/ops/ops.h"
#include "tests/fakes/local_transport.h"
#include "tests/fakes/packed_experts.h"

namespace banyan::test {

struct TestSequence {
  int32_t slot = 0;
  int32_t position = 0;        // tokens in its state
  std::vector<int32_t> pages;  // as many as its tokens need
  int32_t prompt_tokens = 0;   // StepSegment::prompt_tokens of its prompt
};

// What a decoder computed, appended over steps: meant for one sequence at a time.
class RecordingObserver : public trunk::DecoderObserver {
 public:
  struct Layer {
    std::vector<float> mixer;
    std::vector<float> hidden;
    std::vector<uint16_t> expert_ids;
    std::vector<float> expert_weights;
  };
  std::vector<float> embeddings;
  std::vector<float> final_norm;
  std::vector<Layer> layers;

  explicit RecordingObserver(int32_t num_layers) : layers(static_cast<size_t>(num_layers)) {}
  void Clear();
  void OnEmbeddings(std::span<const float> hidden) override;
  void OnMixer(int32_t layer, std::span<const float> hidden) override;
  void OnLayer(int32_t layer, std::span<const float> hidden) override;
  void OnRouting(int32_t layer, std::span<const uint16_t> expert_ids,
                 std::span<const float> weights) override;
  void OnFinalNorm(std::span<const float> hidden) override;
};

class ModelHarness {
 public:
  // $BANYAN_TEST_BACKEND, else the best CPU tier: whole suites run once more on another backend.
  static std::string DefaultBackend();
  // Over how many of its devices a small model with two heads can be spread here: one, and two
  // unless there are fewer GPUs.
  static std::vector<int32_t> Ways();
  // $BANYAN_TEST_TRUNK_FORMAT (int8), $BANYAN_TEST_KV_FORMAT (bf16),
  // $BANYAN_TEST_EXPERT_ACTIVATIONS (bf16), likewise.
  static trunk::TrunkFormat DefaultTrunkFormat();
  static DType DefaultKvDType();
  static DType DefaultExpertActivations();
  // $BANYAN_TEST_HALVED_ROWS: steps of so many rows run as two halves; else 0, none.
  static int32_t DefaultHalvedRows();

  struct Options {
    std::string directory;
    int num_threads = 1;
    std::string backend = DefaultBackend();  // backends.h
    int32_t max_rows = 512;
    int32_t num_slots = 40;
    int32_t num_state_copies = 4;
    int32_t num_pages = 400;
    trunk::TrunkFormat trunk_format = DefaultTrunkFormat();
    DType kv_dtype = DefaultKvDType();
    DType expert_activations = DefaultExpertActivations();
    int32_t halved_rows = DefaultHalvedRows();
    // Of long prompts the decoder computes the first experts of every layer itself, so many by
    // length, with weights of a pool in this format; from there on rows go to experts in bf16, and
    // no step is halved. All 0: none.
    PromptExpertCounts own_experts = {};
    int32_t long_prompt_tokens = kLongPromptTokens;
    PoolFormat pool_format = PoolFormat::kInt8;
    bool observe = false;
    int32_t tensor_parallel = 1;  // backends that share the model
    bool group_of_one = false;    // the only backend is joined with nobody
    std::string pool_dir = {};    // the trunk's pack is made there and used; empty: none
    uint64_t page_seed = 1;       // order in which pages and slots are handed out
  };
  // Tokens of one sequence in a step; `chunked` as in step.h.
  struct Piece {
    TestSequence* sequence;
    std::vector<int32_t> tokens;
    bool chunked;
  };

  explicit ModelHarness(const Options& options);

  const ModelConfig& config() const { return config_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  trunk::ForwardPass& forward_pass() { return *forward_pass_; }
  trunk::Decoder& decoder() { return *decoder_; }      // where one backend has it alone
  trunk::CollectiveGroup& group() { return *group_; }  // of several backends
  LocalTransport& transport() { return *transport_; }
  RecordingObserver& observer() { return *observer_; }

  // To be given a prompt of so many tokens; 0: none of a length that matters.
  TestSequence NewSequence(size_t prompt_tokens = 0);
  void Release(TestSequence* sequence);

  // One step. Logits of all its rows [rows, vocab_size], or of the last row of each piece.
  enum class Rows { kAll, kLast };
  std::vector<float> Run(const std::vector<Piece>& pieces, Rows rows = Rows::kAll);
  // The step alone.
  absl::Status Forward(const std::vector<Piece>& pieces);

 private:
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::optional<PackedExperts> packed_;  // mapped by the backend
  std::vector<std::unique_ptr<WorkerPool>> pools_;
  std::unique_ptr<trunk::CollectiveGroup> group_;
  std::unique_ptr<trunk::RankThreads> threads_;
  std::vector<std::unique_ptr<trunk::Backend>> backends_;
  std::unique_ptr<LocalTransport> transport_;
  std::unique_ptr<RecordingObserver> observer_;
  std::optional<TrunkPack> pack_;
  std::unique_ptr<trunk::Decoder> decoder_;
  std::unique_ptr<trunk::ParallelDecoder> parallel_decoder_;
  trunk::ForwardPass* forward_pass_ = nullptr;  // one of these
  std::mt19937_64 random_;
  std::vector<int32_t> free_pages_;
  std::vector<int32_t> free_slots_;
  int64_t step_id_ = 0;
};

// Index of the largest value; the first one if several.
int32_t ArgMax(const float* logits, int32_t n);

}  // namespace banyan::test
