#include "common/plan/tensor_classes.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <numeric>

#include "common/config/tensor_inventory.h"
#include "common/plan/tensor_parallel.h"
#include "common/tensor/dtype.h"

namespace banyan {
namespace {

// Of a tree node with its string, per tensor.
constexpr uint64_t kAllocationBytes = 32;

struct ClassInfo {
  const char* name;
  const char* destination;
  TensorClass tensor_class;
};
enum Class : size_t {
  kEmbedding,
  kNorms,
  kDeltaNet,
  kAttention,
  kRouter,
  kSharedExpert,
  kDenseMlp,
  kHead,
  kRoutedExperts,
  kMtp,
  kTiedHead,
  kNumClasses
};
constexpr std::array<ClassInfo, kNumClasses> kClasses = {{
    {"embedding", "trunk", TensorClass::kEmbeddings},
    {"norms", "trunk", TensorClass::kNorms},
    {"delta-net", "trunk", TensorClass::kLinearAttention},
    {"attention", "trunk", TensorClass::kFullAttention},
    {"router", "trunk", TensorClass::kRouter},
    {"shared expert", "trunk", TensorClass::kSharedExpert},
    {"dense MLP", "trunk", TensorClass::kDenseMlp},
    {"head", "trunk", TensorClass::kHead},
    {"routed experts", "experts", TensorClass::kRoutedExperts},
    {"multi-token prediction", "unused: multi-token prediction is not run", TensorClass::kMtp},
    {"head", "unused: the word embeddings are tied", TensorClass::kUnused},
}};

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

Class ClassOf(std::string_view name, const ModelConfig& config) {
  if (name.starts_with("mtp.")) return kMtp;
  if (name.starts_with("lm_head.")) return config.tie_word_embeddings ? kTiedHead : kHead;
  if (name.starts_with("model.embed_tokens.")) return kEmbedding;
  if (Has(name, ".mlp.experts.")) return kRoutedExperts;
  if (Has(name, ".mlp.gate.") || Has(name, ".mlp.shared_expert_gate.")) return kRouter;
  if (Has(name, ".mlp.shared_expert.")) return kSharedExpert;
  if (Has(name, ".linear_attn.")) return kDeltaNet;
  if (Has(name, ".self_attn.")) return kAttention;
  if (Has(name, ".mlp.")) return kDenseMlp;
  return kNorms;
}

std::string LowerName(DType dtype) {
  std::string name(DTypeName(dtype));
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

}  // namespace

std::vector<PlannedTensors> ClassifyTensors(const Checkpoint& checkpoint, const ModelConfig& config,
                                            const CheckpointSummary& summary) {
  std::array<PlannedTensors, kNumClasses> found;
  std::array<std::map<std::string, uint64_t>, kNumClasses> formats;
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    const Class index = ClassOf(entry.name, config);
    ++found[index].count;
    found[index].bytes += entry.view.size_bytes();
    // What is not used is not looked at either: its element types.
    if (index == kMtp || index == kTiedHead) {
      formats[index][LowerName(entry.view.dtype)] += entry.view.size_bytes();
    }
  }
  std::vector<PlannedTensors> out;
  for (size_t i = 0; i < kNumClasses; ++i) {
    if (found[i].count == 0) continue;
    found[i].name = kClasses[i].name;
    found[i].destination = kClasses[i].destination;
    for (const TensorClassSummary& row : summary.classes) {
      if (row.tensor_class != kClasses[i].tensor_class || i == kMtp || i == kTiedHead) continue;
      formats[i][std::string(StoredFormatName(row.format))] +=
          static_cast<uint64_t>(row.stored_bytes);
    }
    std::vector<std::pair<std::string, uint64_t>> order(formats[i].begin(), formats[i].end());
    std::stable_sort(order.begin(), order.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    for (const auto& [format, bytes] : order) {
      found[i].formats += (found[i].formats.empty() ? "" : ", ") + format;
    }
    out.push_back(std::move(found[i]));
  }
  return out;
}

uint64_t TrunkWeightSizes::matrix_bytes() const {
  return std::accumulate(matrices.begin(), matrices.end(), uint64_t{0});
}

uint64_t TrunkWeightSizes::vector_bytes() const {
  return std::accumulate(vectors.begin(), vectors.end(), uint64_t{0});
}

TrunkWeightSizes TrunkWeightSizesOf(const Checkpoint& checkpoint, const ModelConfig& config,
                                    TrunkFormat format, int32_t tensor_parallel) {
  // All devices have as much.
  const TensorRank rank = {.rank = 0, .size = tensor_parallel};
  TrunkWeightSizes out;
  uint64_t embedding = 0;
  for (const TensorSpec& spec : TrunkTensors(config)) {
    const auto stored = FindStoredMatrix(checkpoint, spec.name, spec.shape);
    if (!stored.ok()) continue;  // CheckComplete has spoken
    const TensorSlice slice = SliceOf(spec.name, spec.shape, config, rank);
    const auto elements = static_cast<uint64_t>(slice.num_elements());
    if (spec.shape.rank() != 2) {
      out.file_bytes += stored->weight.size_bytes();
      out.vectors.push_back(elements * sizeof(float));
      continue;
    }
    const auto dtype = DequantizedDType(checkpoint, *stored);
    const DType resident = dtype.ok() ? ResidentDType(*dtype) : DType::kF32;
    if (format == TrunkFormat::kInt8 && !IsKeptAsStored(spec.name)) {
      const auto groups =
          static_cast<uint64_t>(Int8Groups(static_cast<int32_t>(slice.cols.size())));
      const uint64_t scales = static_cast<uint64_t>(slice.num_rows()) * groups * sizeof(float);
      out.code_bytes += elements + scales;
      out.bytes_per_token += elements + scales;
      out.matrices.insert(out.matrices.end(), {elements, scales});
      continue;
    }
    const uint64_t bytes = elements * DTypeSizeBytes(resident);
    if (stored->weight.dtype != resident) {
      out.decoded_bytes += bytes;
    } else if (slice.IsContiguous(spec.shape)) {
      out.file_bytes += stored->weight.size_bytes();
    } else {
      out.sliced_bytes += bytes;
    }
    const bool table = spec.tensor_class == TensorClass::kEmbeddings && !config.tie_word_embeddings;
    if (table) {
      out.table_bytes += bytes;
    } else {
      out.matrices.push_back(bytes);
    }
    if (spec.tensor_class == TensorClass::kEmbeddings) {
      embedding = bytes;
      out.bytes_per_token += bytes / static_cast<uint64_t>(slice.num_rows());
    } else {
      out.bytes_per_token += bytes;
    }
  }
  if (config.tie_word_embeddings) out.bytes_per_token += embedding;
  return out;
}

uint64_t TensorIndexBytes(const Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  for (const Checkpoint::Entry& entry : checkpoint.entries()) {
    bytes += sizeof(entry) + entry.name.capacity() + kAllocationBytes;
  }
  return bytes;
}

}  // namespace banyan
