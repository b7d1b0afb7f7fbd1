#include "common/synth/synth_plan.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/open_checkpoint.h"
#include "common/io/safetensors.h"
#include "common/quant/nf4.h"
#include "common/synth/quantise.h"

namespace banyan {
namespace {

constexpr uint64_t kFileBytes = 5'000'000'000;  // as Hugging Face cuts them

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where a tensor stands in the order of a state_dict: embeddings, layers, the rest.
int64_t LayerOf(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  if (name.starts_with("model.embed_tokens")) return -1;
  if (!name.starts_with(kLayers)) return INT32_MAX;
  return std::strtol(std::string(name.substr(kLayers.size(), 8)).c_str(), nullptr, 10);
}

bool IsExpert(std::string_view name) {
  return name.find(".mlp.experts.") != std::string_view::npos;
}

// Whether a quantiser of linear layers would see this matrix.
bool IsQuantised(const GeneratedTensor& tensor, const SynthOptions& options) {
  const std::string_view name = tensor.name;
  if (options.format == SynthFormat::kBF16 || tensor.shape.rank() != 2) return false;
  if (name.starts_with("model.embed_tokens") || name.starts_with("lm_head")) return false;
  if (options.fused && IsExpert(name)) return false;
  const bool router =
      name.ends_with("mlp.gate.weight") || name.ends_with("shared_expert_gate.weight");
  if (options.format == SynthFormat::kFP8) return !router && !name.ends_with("in_proj_ba.weight");
  return !router || options.quantise_router;
}

SynthUnit::Kind KindOf(SynthFormat format) {
  switch (format) {
    case SynthFormat::kBF16:
      break;
    case SynthFormat::kNF4:
      return SynthUnit::Kind::kNF4;
    case SynthFormat::kNF4Single:
      return SynthUnit::Kind::kNF4Single;
    case SynthFormat::kInt8:
      return SynthUnit::Kind::kInt8;
    case SynthFormat::kFP8:
      return SynthUnit::Kind::kFP8;
  }
  return SynthUnit::Kind::kPlain;
}

class Planner {
 public:
  Planner(const SynthOptions& options, SynthPlan* plan) : options_(options), plan_(*plan) {}

  void MakeUnits() {
    std::vector<int32_t> order(plan_.sources.size());
    std::iota(order.begin(), order.end(), 0);
    std::vector<int64_t> layers;
    for (const GeneratedTensor& source : plan_.sources) layers.push_back(LayerOf(source.name));
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return layers[static_cast<size_t>(a)] < layers[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i < order.size();) {
      if (options_.fused && IsExpert(Source(order[i]).name)) {
        const size_t first = i;
        const int64_t layer = layers[static_cast<size_t>(order[i])];
        while (i < order.size() && IsExpert(Source(order[i]).name) &&
               layers[static_cast<size_t>(order[i])] == layer) {
          ++i;
        }
        AddFused({order.begin() + static_cast<ptrdiff_t>(first),
                  order.begin() + static_cast<ptrdiff_t>(i)});
      } else if (IsQuantised(Source(order[i]), options_)) {
        AddQuantised(order[i++]);
      } else {
        AddPlain({order[i]}, Source(order[i]).name, Source(order[i]).shape);
        ++i;
      }
    }
  }

  absl::Status MakeFiles() {
    const auto total = static_cast<int64_t>(plan_.tensor_bytes);
    const int64_t num_files = options_.num_files > 0
                                  ? options_.num_files
                                  : std::max<int64_t>(1, CeilDiv(total, kFileBytes));
    if (num_files > static_cast<int64_t>(plan_.tensors.size())) {
      return InvalidArgumentF("{} files for {} tensors: at least one tensor a file", num_files,
                              plan_.tensors.size());
    }
    plan_.files.resize(static_cast<size_t>(num_files));
    for (int64_t i = 0; i < num_files; ++i) {
      plan_.files[static_cast<size_t>(i)].name =
          num_files == 1 ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, num_files);
    }
    // Cut after equal shares of the bytes, but leave a tensor for every file that is still empty.
    uint64_t before = 0;
    int64_t file = 0;
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      SynthTensor& tensor = plan_.tensors[i];
      const auto left = static_cast<int64_t>(plan_.tensors.size() - i);
      const auto share = static_cast<int64_t>(static_cast<long double>(before) *
                                              static_cast<long double>(num_files) /
                                              static_cast<long double>(plan_.tensor_bytes));
      // A file begins when its share does, or with the last tensor that can still fill it.
      if (i > 0 && (share > file || left == num_files - file - 1) && file + 1 < num_files) ++file;
      tensor.file = static_cast<int32_t>(file);
      before += tensor.bytes;
    }
    std::vector<std::vector<int32_t>> of_file(plan_.files.size());
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      of_file[static_cast<size_t>(plan_.tensors[i].file)].push_back(static_cast<int32_t>(i));
    }
    for (size_t i = 0; i < plan_.files.size(); ++i) RETURN_IF_ERROR(LayOut(of_file[i], i));
    return absl::OkStatus();
  }

  void MakeIndex() {
    if (plan_.files.size() == 1) return;
    std::vector<int32_t> order(plan_.tensors.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return Tensor(a).name < Tensor(b).name; });
    std::string& out = plan_.index;
    out = fmt::format("{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{",
                      plan_.tensor_bytes);
    for (size_t i = 0; i < order.size(); ++i) {
      const SynthTensor& tensor = Tensor(order[i]);
      fmt::format_to(std::back_inserter(out), "{}\n    \"{}\": \"{}\"", i == 0 ? "" : ",",
                     tensor.name, plan_.files[static_cast<size_t>(tensor.file)].name);
    }
    out += "\n  }\n}\n";
  }

 private:
  const GeneratedTensor& Source(int32_t i) const { return plan_.sources[static_cast<size_t>(i)]; }
  SynthTensor& Tensor(int32_t i) { return plan_.tensors[static_cast<size_t>(i)]; }

  void AddTensor(std::string name, DType dtype, Shape shape) {
    SynthTensor tensor;
    tensor.bytes = static_cast<uint64_t>(shape.num_elements()) * DTypeSizeBytes(dtype);
    tensor.name = std::move(name);
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
    plan_.tensor_bytes += tensor.bytes;
    plan_.tensors.push_back(std::move(tensor));
  }

  SynthUnit& AddUnit(SynthUnit::Kind kind, std::vector<int32_t> sources) {
    SynthUnit unit;
    unit.kind = kind;
    unit.sources = std::move(sources);
    unit.first_tensor = static_cast<int32_t>(plan_.tensors.size());
    plan_.units.push_back(std::move(unit));
    return plan_.units.back();
  }

  void AddPlain(std::vector<int32_t> sources, std::string name, Shape shape) {
    AddUnit(SynthUnit::Kind::kPlain, std::move(sources));
    AddTensor(std::move(name), DType::kBF16, std::move(shape));
  }

  // `experts`: gate_proj, up_proj and down_proj of each expert of a layer.
  void AddFused(const std::vector<int32_t>& experts) {
    CHECK(!experts.empty() && experts.size() % 3 == 0);
    const std::string& name = Source(experts[0]).name;  // ...mlp.experts.0.gate_proj.weight
    const std::string prefix = name.substr(0, name.find(".mlp.experts.") + 13);
    const Shape& gate = Source(experts[0]).shape;
    const auto count = static_cast<int64_t>(experts.size() / 3);
    std::vector<int32_t> gate_up, down;
    for (size_t e = 0; e < experts.size(); e += 3) {
      gate_up.push_back(experts[e]);
      gate_up.push_back(experts[e + 1]);
      down.push_back(experts[e + 2]);
    }
    AddPlain(std::move(gate_up), prefix + "gate_up_proj", {count, 2 * gate.dim(0), gate.dim(1)});
    AddPlain(std::move(down), prefix + "down_proj", {count, gate.dim(1), gate.dim(0)});
  }

  void AddQuantised(int32_t source) {
    const std::string name = Source(source).name;  // X.weight
    const Shape shape = Source(source).shape;
    const std::string module = name.substr(0, name.size() - std::string_view(".weight").size());
    const int64_t elements = shape.num_elements();
    const SynthUnit::Kind kind = KindOf(options_.format);
    const size_t first = plan_.tensors.size();
    AddUnit(kind, {source});
    switch (kind) {
      case SynthUnit::Kind::kPlain:
        break;
      case SynthUnit::Kind::kNF4:
      case SynthUnit::Kind::kNF4Single: {
        const bool nested = kind == SynthUnit::Kind::kNF4;
        const int64_t blocks = CeilDiv(elements, kNF4BlockSize);
        AddTensor(name, DType::kU8, {CeilDiv(elements, 2), 1});
        AddTensor(name + ".absmax", nested ? DType::kU8 : DType::kF32, {blocks});
        AddTensor(name + ".quant_map", DType::kF32, {16});
        if (nested) {
          AddTensor(name + ".nested_absmax", DType::kF32, {CeilDiv(blocks, 256)});
          AddTensor(name + ".nested_quant_map", DType::kF32, {256});
        }
        AddTensor(name + ".quant_state.bitsandbytes__nf4", DType::kU8,
                  {static_cast<int64_t>(QuantStateText(kind, shape, 0).size())});
        break;
      }
      case SynthUnit::Kind::kInt8:
        AddTensor(name, DType::kI8, shape);
        AddTensor(module + ".SCB", DType::kF32, {shape.dim(0)});
        AddTensor(module + ".weight_format", DType::kU8, {});
        break;
      case SynthUnit::Kind::kFP8:
        AddTensor(name, DType::kF8E4M3, shape);
        AddTensor(name + "_scale_inv", DType::kBF16,
                  {CeilDiv(shape.dim(0), kFP8Block), CeilDiv(shape.dim(1), kFP8Block)});
        break;
    }
    plan_.units.back().num_tensors = static_cast<int32_t>(plan_.tensors.size() - first);
  }

  // Header and places of one file: by size of the element, largest first, then by name.
  absl::Status LayOut(std::vector<int32_t> tensors, size_t file_idx) {
    std::sort(tensors.begin(), tensors.end(), [&](int32_t a, int32_t b) {
      const size_t size_a = DTypeSizeBytes(Tensor(a).dtype);
      const size_t size_b = DTypeSizeBytes(Tensor(b).dtype);
      return size_a != size_b ? size_a > size_b : Tensor(a).name < Tensor(b).name;
    });
    std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";
    uint64_t offset = 0;
    for (const int32_t i : tensors) {
      SynthTensor& tensor = Tensor(i);
      tensor.offset = offset;
      offset += tensor.bytes;
      fmt::format_to(std::back_inserter(json),
                     ",\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                     tensor.name, DTypeName(tensor.dtype), fmt::join(tensor.shape.dims(), ","),
                     tensor.offset, offset);
    }
    json += '}';
    json.resize((json.size() + 7) / 8 * 8, ' ');
    SynthPlan::File& file = plan_.files[file_idx];
    if (json.size() > kMaxSafetensorsHeaderBytes) {
      return InvalidArgumentF(
          "{}: a header of {} bytes for {} tensors, expected at most {}: more files", file.name,
          json.size(), tensors.size(), kMaxSafetensorsHeaderBytes);
    }
    for (int i = 0; i < 8; ++i) {
      file.header += static_cast<char>(static_cast<unsigned char>(json.size() >> (8 * i)));
    }
    file.header += json;
    file.bytes = file.header.size() + offset;
    for (const int32_t i : tensors) Tensor(i).offset += file.header.size();
    return absl::OkStatus();
  }

  const SynthOptions& options_;
  SynthPlan& plan_;
};

// Linear layers that an FP8 checkpoint leaves alone.
std::vector<std::string> PlainModules(const SynthPlan& plan) {
  std::vector<std::string> modules;
  for (const SynthUnit& unit : plan.units) {
    const GeneratedTensor& source = plan.sources[static_cast<size_t>(unit.sources[0])];
    if (unit.kind != SynthUnit::Kind::kPlain || source.shape.rank() != 2 || IsExpert(source.name) ||
        source.name.starts_with("model.embed_tokens")) {
      continue;
    }
    modules.push_back(
        source.name.substr(0, source.name.size() - std::string_view(".weight").size()));
  }
  return modules;
}

}  // namespace

std::string QuantStateText(SynthUnit::Kind kind, const Shape& shape, float offset) {
  std::string text = fmt::format(
      "{{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [{}]",
      fmt::join(shape.dims(), ", "));
  if (kind == SynthUnit::Kind::kNF4) {
    // 19 characters, of which f32 needs fewer.
    const double value = offset;
    const std::string number = value == 0 || (value >= 1e-8 && value < 10)
                                   ? fmt::format("{:.17f}", value)
                                   : fmt::format("{:.13e}", value);
    CHECK(number.size() == 19);
    text += fmt::format(
        ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
        number);
  }
  return text + "}";
}

absl::StatusOr<SynthPlan> PlanSynth(const SynthConfig& config, const SynthOptions& options) {
  SynthPlan plan;
  plan.sources = GeneratedTensors(config.model);
  for (const GeneratedTensor& source : plan.sources) {
    // An odd factor spreads seeds over all bits; 0 leaves the name's own.
    plan.seeds.push_back(GeneratedTensorSeed(source.name) ^ (options.seed * 0x9e3779b97f4a7c15ull));
  }
  Planner planner(options, &plan);
  planner.MakeUnits();
  RETURN_IF_ERROR(planner.MakeFiles());
  planner.MakeIndex();
  plan.config = SynthConfigText(config, options.format, PlainModules(plan));
  plan.total_bytes = plan.index.size() + plan.config.size();
  for (const SynthPlan::File& file : plan.files) plan.total_bytes += file.bytes;
  return plan;
}

}  // namespace banyan
