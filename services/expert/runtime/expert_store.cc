#include "services/expert/runtime/expert_store.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/io/read_ahead.h"

namespace banyan::expert {
namespace {

constexpr int64_t kPageBytes = 4096;
// Experts brought in between two reports of progress.
constexpr int64_t kExpertsPerReport = 8;  // of a thread

// Can be read where it is mapped.
absl::Status CheckMapped(const StoredMatrix& matrix) {
  if (matrix.format == StoredFormat::kBF16 || matrix.format == StoredFormat::kF32) {
    return absl::OkStatus();
  }
  return FailedPreconditionF("{} is {}: such experts are served from a pack", matrix.name,
                             StoredFormatName(matrix.format));
}

WeightMatrix MatrixOf(const StoredMatrix& matrix) {
  const TensorView& view = matrix.weight;
  CHECK(view.dtype == DType::kBF16 || view.dtype == DType::kF32);
  const WeightType type = view.dtype == DType::kBF16 ? WeightType::kBF16 : WeightType::kF32;
  return {view.data, view.shape.dim(1) * WeightBytes(type), type};
}

ExpertWeights SliceWidth(const ExpertTensors& tensors, int32_t first_width) {
  ExpertWeights out{MatrixOf(tensors.gate_proj), MatrixOf(tensors.up_proj),
                    MatrixOf(tensors.down_proj)};
  out.gate_proj.data += first_width * out.gate_proj.row_stride_bytes;
  out.up_proj.data += first_width * out.up_proj.row_stride_bytes;
  out.down_proj.data += first_width * WeightBytes(out.down_proj.type);
  return out;
}

// The part of a matrix that a shard reads: num_runs runs of run_bytes, stride_bytes apart.
struct Runs {
  const std::byte* data;
  int64_t num_runs;
  int64_t run_bytes;
  int64_t stride_bytes;
};

std::array<Runs, 3> RunsOf(const ExpertWeights& w, const ShardGeometry& g) {
  const auto rows = [&](const WeightMatrix& m) {
    return Runs{m.data, 1, g.num_shard_width * m.row_stride_bytes, 0};
  };
  const WeightMatrix& down = w.down_proj;
  const int64_t down_bytes = g.num_shard_width * WeightBytes(down.type);
  return {rows(w.gate_proj), rows(w.up_proj),
          g.num_shard_width == g.moe_intermediate_size
              ? Runs{down.data, 1, g.hidden_size * down.row_stride_bytes, 0}
              : Runs{down.data, g.hidden_size, down_bytes, down.row_stride_bytes}};
}

std::string_view FormatOf(const ExpertTable& table) {
  bool bf16 = false;
  bool f32 = false;
  for (const std::vector<ExpertWeights>& experts : table.layers) {
    for (const ExpertWeights& w : experts) {
      for (const WeightMatrix* m : {&w.gate_proj, &w.up_proj, &w.down_proj}) {
        (m->type == WeightType::kBF16 ? bf16 : f32) = true;
      }
    }
  }
  return bf16 && f32 ? "mixed" : bf16 ? "bf16" : "f32";
}

// The pages of a run into memory: long runs by large reads, else one byte of every page.
void Touch(const std::byte* data, int64_t bytes, ReadAhead* pages) {
  constexpr int64_t kLongRunBytes = 64 * kPageBytes;
  if (bytes >= kLongRunBytes && pages->Populate({data, static_cast<size_t>(bytes)})) return;
  const auto read = [](const std::byte* p) { (void)*static_cast<const volatile std::byte*>(p); };
  for (int64_t i = 0; i < bytes; i += kPageBytes) read(data + i);
  if (bytes > 0) read(data + bytes - 1);
}

void PrefetchExpert(const ExpertWeights& weights, const ShardGeometry& geometry,
                    const ReadAhead& pages) {
  for (const Runs& runs : RunsOf(weights, geometry)) {
    // Columns of a matrix: their rows share pages, so the kernel is asked for the whole stretch
    // unless rows are pages apart.
    if (runs.num_runs == 1 || runs.stride_bytes <= 2 * kPageBytes) {
      const int64_t bytes = (runs.num_runs - 1) * runs.stride_bytes + runs.run_bytes;
      pages.Prefetch({runs.data, static_cast<size_t>(bytes)});
    } else {
      for (int64_t i = 0; i < runs.num_runs; ++i) {
        pages.Prefetch({runs.data + i * runs.stride_bytes, static_cast<size_t>(runs.run_bytes)});
      }
    }
  }
}

void TouchExpert(const Checkpoint& checkpoint, const ExpertWeights& weights,
                 const ShardGeometry& geometry, ReadAhead* pages) {
  for (const Runs& runs : RunsOf(weights, geometry)) {
    for (int64_t i = 0; i < runs.num_runs; ++i) {
      checkpoint.Fill({runs.data + i * runs.stride_bytes, static_cast<size_t>(runs.run_bytes)});
      Touch(runs.data + i * runs.stride_bytes, runs.run_bytes, pages);
    }
  }
}

}  // namespace

uint64_t ExpertSliceBytes(const ExpertWeights& weights, const ShardGeometry& geometry) {
  uint64_t bytes = 0;
  for (const Runs& runs : RunsOf(weights, geometry)) {
    bytes += static_cast<uint64_t>(runs.num_runs * runs.run_bytes);
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Open(const std::string& directory,
                                                               const ShardSpec& shard,
                                                               LoadFormat load_format) {
  ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(directory, load_format));
  RETURN_IF_ERROR(CheckComplete(*opened.checkpoint, opened.config).status());
  return FromModel(std::move(opened), shard);
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::FromModel(OpenedModel opened,
                                                                    const ShardSpec& shard) {
  std::unique_ptr<ExpertStore> store(new ExpertStore);
  store->description_.shard = shard;
  store->config_ = std::move(opened.config);
  const ModelConfig& config = store->config_;
  store->checkpoint_ = std::move(opened.checkpoint);
  const Checkpoint& checkpoint = *store->checkpoint_;
  ASSIGN_OR_RETURN(store->table_.geometry, MakeShardGeometry(config, shard));
  const ShardGeometry& geometry = store->table_.geometry;
  store->table_.layers.resize(static_cast<size_t>(geometry.num_layers));
  for (int32_t layer = 0; layer < geometry.num_layers; ++layer) {
    if (config.mlps[static_cast<size_t>(layer)] != MlpKind::kMoe) continue;
    store->description_.moe_layers.push_back(layer);
    std::vector<ExpertWeights>& experts = store->table_.layers[static_cast<size_t>(layer)];
    experts.reserve(static_cast<size_t>(geometry.num_shard_experts));
    for (int32_t e = 0; e < geometry.num_shard_experts; ++e) {
      ASSIGN_OR_RETURN(const ExpertTensors tensors,
                       GetExpertTensors(checkpoint, config, layer, geometry.first_expert + e));
      for (const StoredMatrix* matrix :
           {&tensors.gate_proj, &tensors.up_proj, &tensors.down_proj}) {
        RETURN_IF_ERROR(CheckMapped(*matrix));
      }
      experts.push_back(SliceWidth(tensors, geometry.first_width));
      store->description_.pool_bytes += ExpertSliceBytes(experts.back(), geometry);
    }
  }
  store->description_.geometry = geometry;
  store->description_.format = FormatOf(store->table_);
  store->description_.fingerprint = checkpoint.fingerprint();
  if (store->description_.moe_layers.empty()) {
    return FailedPreconditionF("{}: no layer has routed experts, nothing for an expert host to do",
                               checkpoint.directory());
  }
  return store;
}

std::vector<std::span<const std::byte>> ExpertStore::ContiguousWeights() const {
  std::vector<std::span<const std::byte>> spans;
  for (const std::vector<ExpertWeights>& experts : table_.layers) {
    for (const ExpertWeights& weights : experts) {
      const std::array<Runs, 3> runs = RunsOf(weights, geometry());
      for (const Runs& run : {runs[0], runs[1]}) {
        spans.push_back({run.data, static_cast<size_t>(run.run_bytes)});
      }
    }
  }
  return spans;
}

absl::Status ExpertStore::Load(WorkerPool& pool,
                               absl::FunctionRef<bool(uint64_t bytes_done)> progress) const {
  RETURN_IF_ERROR(checkpoint_->CheckFilesUnchanged());
  uint64_t done = 0;
  if (!progress(done)) return absl::CancelledError("load stopped");
  std::vector<const ExpertWeights*> all;
  for (const std::vector<ExpertWeights>& experts : table_.layers) {
    for (const ExpertWeights& weights : experts) all.push_back(&weights);
  }
  // In the order of the files, whatever that of the experts is.
  std::sort(all.begin(), all.end(), [](const ExpertWeights* a, const ExpertWeights* b) {
    return a->down_proj.data < b->down_proj.data;
  });
  const auto num_experts = static_cast<int64_t>(all.size());
  const int64_t batch = kExpertsPerReport * pool.num_threads();
  ReadAhead pages;
  for (int64_t first = 0; first < num_experts; first += batch) {
    const int64_t end = std::min(first + batch, num_experts);
    pool.ParallelFor(end - first, [&](int64_t i, int) {
      // The disk goes on with the next batch while this one's last thread ends.
      const int64_t ahead = first + i + batch;
      if (ahead < num_experts) PrefetchExpert(*all[static_cast<size_t>(ahead)], geometry(), pages);
      TouchExpert(*checkpoint_, *all[static_cast<size_t>(first + i)], geometry(), &pages);
    });
    for (int64_t e = first; e < end; ++e) {
      done += ExpertSliceBytes(*all[static_cast<size_t>(e)], geometry());
    }
    if (!progress(done)) return absl::CancelledError("load stopped");
  }
  return checkpoint_->CheckFilesUnchanged();
}

}  // namespace banyan::expert
