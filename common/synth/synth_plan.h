// Every byte of a generated checkpoint before the first one is written: which tensors it has, in
// which file and where, and how large it becomes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/io/generated_tensor.h"
#include "common/synth/synth_config.h"
#include "common/tensor/dtype.h"
#include "common/tensor/shape.h"

namespace banyan {

struct SynthOptions {
  SynthFormat format = SynthFormat::kBF16;
  // Experts as two tensors a layer. They stay bf16 in every format: quantisers of linear layers do
  // not see them.
  bool fused = false;
  // bitsandbytes formats: the router and the shared expert's gate too.
  bool quantise_router = false;
  int32_t num_files = 0;  // 0: as few as hold 5 GB each
  uint64_t seed = 0;      // 0: the values of --load_format dummy
};

struct SynthTensor {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  int32_t file = 0;     // of SynthPlan::files
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;
};

// What becomes of some generated tensors: one tensor of the files that is their concatenation, or a
// matrix in a quantised format, which is several.
struct SynthUnit {
  enum class Kind : uint8_t { kPlain, kNF4, kNF4Single, kInt8, kFP8 };
  Kind kind = Kind::kPlain;
  std::vector<int32_t> sources;  // of SynthPlan::sources; one unless the unit is plain
  // Of SynthPlan::tensors. kPlain: the tensor; kNF4: weight, absmax, quant_map, nested_absmax,
  // nested_quant_map, quant_state; kNF4Single: weight, absmax, quant_map, quant_state; kInt8:
  // weight, SCB, weight_format; kFP8: weight, weight_scale_inv.
  int32_t first_tensor = 0;
  int32_t num_tensors = 1;
};

struct SynthPlan {
  struct File {
    std::string name;
    std::string header;  // length and JSON text
    uint64_t bytes = 0;  // with the header
  };
  std::vector<GeneratedTensor> sources;
  std::vector<uint64_t> seeds;       // [sources]
  std::vector<SynthTensor> tensors;  // in the order of the model's layers
  std::vector<SynthUnit> units;
  std::vector<File> files;
  std::string index;   // model.safetensors.index.json; "": one file, no index
  std::string config;  // config.json
  uint64_t tensor_bytes = 0;
  uint64_t total_bytes = 0;  // of all files, the index and config.json
};

// kInvalidArgument: more files than tensors, or a header larger than a reader takes.
absl::StatusOr<SynthPlan> PlanSynth(const SynthConfig& config, const SynthOptions& options);

// The JSON of a quant_state: the same length for every `offset`. kNF4Single has no offset.
std::string QuantStateText(SynthUnit::Kind kind, const Shape& shape, float offset);

}  // namespace banyan
