#include "common/pool/pack_builder.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/stored_matrix.h"
#include "common/config/tensor_inventory.h"
#include "common/io/output_file.h"
#include "common/parallel/first_error.h"
#include "common/pool/aligned_bytes.h"
#include "common/pool/generated_expert.h"
#include "common/pool/pack_path.h"
#include "common/quant/nf4.h"
#include "common/quant/packed_matrix.h"

namespace banyan {
namespace {

// Experts of a thread between two reports of progress.
constexpr int64_t kExpertsPerReport = 4;

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// A part of a checkpoint's matrix: `num_rows` whole rows, of which the columns [first_col,
// first_col + num_cols) are wanted.
struct MatrixPart {
  MatrixDecoder matrix;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t first_col = 0;
  int64_t num_cols = 0;

  std::span<const std::byte> bytes() const { return matrix.RowBytes(first_row, num_rows); }
  const std::string& name() const { return matrix.matrix().name; }
};

// `part` as f32, [num_rows][num_cols]. `row` holds one row of the matrix. kDataLoss names a value
// that is not finite.
absl::Status Widen(const Checkpoint& checkpoint, const MatrixPart& part, const std::byte* raw,
                   float* row, float* out) {
  const int64_t row_cols = part.matrix.matrix().cols;
  const bool whole = part.num_cols == row_cols;
  if (whole) part.matrix.DecodeRows(part.first_row, part.num_rows, raw, out);
  for (int64_t r = 0; r < part.num_rows; ++r) {
    float* const to = out + r * part.num_cols;
    if (!whole) {
      const std::byte* const from =
          raw + (part.matrix.RowBytes(part.first_row + r, 1).data() - part.bytes().data());
      part.matrix.DecodeRows(part.first_row + r, 1, from, row);
      std::memcpy(to, row + part.first_col, static_cast<size_t>(part.num_cols) * sizeof(float));
    }
    uint32_t not_finite = 0;
    for (int64_t c = 0; c < part.num_cols; ++c) {
      not_finite |= (std::bit_cast<uint32_t>(to[c]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    }
    if (not_finite == 0) continue;
    for (int64_t c = 0; c < part.num_cols; ++c) {
      if ((std::bit_cast<uint32_t>(to[c]) & 0x7f800000u) != 0x7f800000u) continue;
      return DataLossF("{}[{}, {}] is {}, expected a finite number ({})", part.name(),
                       part.first_row + r, part.first_col + c, to[c],
                       checkpoint.FileOf(*part.matrix.matrix().entry));
    }
  }
  return absl::OkStatus();
}

// The pool keeps codes and scales as the checkpoint has them.
absl::Status KeepNF4(const MatrixPart& part, const std::byte* raw, std::byte* out) {
  std::string difference;
  if (!part.matrix.IsPoolNF4(&difference)) {
    return StatusF(absl::StatusCode::kUnimplemented,
                   "{} cannot be kept in an nf4 pool: {}; use --pool_format bf16", part.name(),
                   difference);
  }
  const int64_t cols = part.matrix.matrix().cols;
  const auto first_block = static_cast<size_t>(part.first_row * cols / kNF4BlockSize);
  PackNF4Codes({.codes = raw,
                .absmax = part.matrix.absmax().subspan(first_block).data(),
                .num_outputs = part.num_rows,
                .k = part.num_cols,
                .row_codes = cols,
                .code_offset = part.first_col},
               out);
  return absl::OkStatus();
}

class Builder {
 public:
  Builder(const PackRequest& request, ExpertPackHeader header, WorkerPool& pool)
      : request_(request),
        header_(std::move(header)),
        layout_(LayoutOf(header_)),
        pool_(pool),
        workers_(static_cast<size_t>(pool.num_threads())) {
    header_.checksums.resize(static_cast<size_t>(header_.num_packed_experts()));
  }

  absl::StatusOr<PackStats> Build(const std::string& path, PackProgressFn progress) {
    PackStats stats;
    const PackWriteSteps steps = {
        .checkpoint = request_.checkpoint,
        .file_bytes = layout_.file_bytes,
        .payload = [&](const OutputFile& file) { return WriteExperts(file, progress); },
        .header = [&] { return EncodeExpertPackHeader(header_); },
        .verify = [&](const std::string& temporary) -> absl::Status {
          ASSIGN_OR_RETURN(const ExpertPack written, ExpertPack::Open(temporary));
          return VerifyPack(written, pool_, progress);
        }};
    RETURN_IF_ERROR(WritePack(path, steps, &stats));
    stats.source_bytes = source_bytes_.load();
    stats.num_threads = pool_.num_threads();
    for (const Worker& worker : workers_) {
      stats.read_seconds += worker.read_seconds;
      stats.convert_seconds += worker.convert_seconds;
      stats.write_seconds += worker.write_seconds;
    }
    return stats;
  }

 private:
  // Of one thread; made when it runs its first expert.
  struct Worker {
    std::optional<AlignedBytes> raw;     // a matrix as the checkpoint has it
    std::optional<AlignedBytes> values;  // the same in f32
    std::optional<AlignedBytes> row;     // one row of it in f32
    std::optional<AlignedBytes> packed;  // the expert
    double read_seconds = 0;
    double convert_seconds = 0;
    double write_seconds = 0;
  };

  // What is wanted of an expert and where it goes.
  struct Parts {
    MatrixPart matrices[3];
    int64_t at[3];
  };
  absl::StatusOr<Parts> PartsOf(int32_t layer, int32_t expert) const {
    ASSIGN_OR_RETURN(ExpertTensors tensors,
                     GetExpertTensors(*request_.checkpoint, *request_.config, layer, expert));
    const Checkpoint& checkpoint = *request_.checkpoint;
    ASSIGN_OR_RETURN(MatrixDecoder gate,
                     MatrixDecoder::Create(checkpoint, std::move(tensors.gate_proj)));
    ASSIGN_OR_RETURN(MatrixDecoder up,
                     MatrixDecoder::Create(checkpoint, std::move(tensors.up_proj)));
    ASSIGN_OR_RETURN(MatrixDecoder down,
                     MatrixDecoder::Create(checkpoint, std::move(tensors.down_proj)));
    const int64_t first = header_.first_width;
    const int64_t width = header_.num_shard_width;
    const int64_t hidden = header_.hidden_size;
    return Parts{{{std::move(gate), first, width, 0, hidden},
                  {std::move(up), first, width, 0, hidden},
                  {std::move(down), 0, hidden, first, width}},
                 {0, layout_.gate_bytes, 2 * layout_.gate_bytes}};
  }

  // Bytes of the checkpoint that are read for all experts, if they are all of one type.
  uint64_t TotalSourceBytes() const {
    const absl::StatusOr<Parts> first = PartsOf(header_.moe_layers.front(), header_.first_expert);
    if (!first.ok()) return 0;
    uint64_t bytes = 0;
    for (const MatrixPart& part : first->matrices) bytes += part.bytes().size();
    return bytes * static_cast<uint64_t>(header_.num_packed_experts());
  }

  absl::Status WriteExperts(const OutputFile& file, PackProgressFn progress) {
    const uint64_t total = TotalSourceBytes();
    const auto report = [&] {
      const uint64_t done = source_bytes_.load();
      return progress({PackProgress::Phase::kConvert, std::min(done, total), total});
    };
    if (!report()) return absl::CancelledError("packing stopped");
    const int64_t num_experts = header_.num_packed_experts();
    const int64_t batch = kExpertsPerReport * pool_.num_threads();
    FirstError error;
    for (int64_t first = 0; first < num_experts; first += batch) {
      const int64_t end = std::min(first + batch, num_experts);
      pool_.ParallelFor(end - first, [&](int64_t i, int thread) {
        if (error.failed()) return;
        // The disk goes on with the next batch while this one is converted and written.
        if (first + i + batch < num_experts) Prefetch(first + i + batch);
        absl::Status status = PackExpert(first + i, file, workers_[static_cast<size_t>(thread)]);
        if (!status.ok()) error.Set(status);
      });
      RETURN_IF_ERROR(error.Get());
      file.StartWriteback(layout_.ExpertOffset(first), (end - first) * layout_.expert_bytes);
      if (!report()) return absl::CancelledError("packing stopped");
    }
    return absl::OkStatus();
  }

  std::pair<int32_t, int32_t> LayerAndExpert(int64_t idx) const {
    return {header_.moe_layers[static_cast<size_t>(idx / header_.num_shard_experts)],
            static_cast<int32_t>(header_.first_expert + idx % header_.num_shard_experts)};
  }

  // Asks for what the shard reads of an expert; errors are met when it is packed.
  void Prefetch(int64_t idx) const {
    const auto [layer, expert] = LayerAndExpert(idx);
    const auto tensors = GetExpertTensors(*request_.checkpoint, *request_.config, layer, expert);
    if (!tensors.ok() || request_.checkpoint->is_generated()) return;
    for (const StoredMatrix* matrix : {&tensors->gate_proj, &tensors->up_proj}) {
      // Rows of the shard's part of the width, in bytes of whatever the matrix is stored in.
      const TensorView& view = matrix->weight;
      const std::span<const std::byte> bytes(view.data, view.size_bytes());
      const auto at = [&](int32_t row) {
        return bytes.size() / static_cast<size_t>(header_.moe_intermediate_size) *
               static_cast<size_t>(row);
      };
      MappedFile::Prefetch(bytes.subspan(at(header_.first_width), at(header_.num_shard_width)));
    }
    request_.checkpoint->Prefetch(tensors->down_proj.weight);
  }

  absl::Status PackExpert(int64_t idx, const OutputFile& file, Worker& worker) {
    const auto [layer, expert] = LayerAndExpert(idx);
    const std::string name = fmt::format("layer {} expert {}", layer, expert);
    const std::string place = fmt::format("{}: {}", request_.checkpoint->directory(), name);
    absl::StatusOr<Parts> parts = PartsOf(layer, expert);
    if (!parts.ok()) return Annotate(parts.status(), place);
    if (!worker.packed) {
      const int64_t side = int64_t{header_.moe_intermediate_size} * header_.hidden_size;
      worker.raw.emplace(side * 4);
      worker.values.emplace(side * 4);
      worker.row.emplace(int64_t{std::max(header_.moe_intermediate_size, header_.hidden_size)} * 4);
      worker.packed.emplace(layout_.expert_bytes);
    }
    std::byte* const packed = worker.packed->data();
    // Rounding up to whole lines leaves bytes that no matrix writes.
    std::memset(packed + layout_.gate_bytes - 64, 0, 64);
    std::memset(packed + 2 * layout_.gate_bytes - 64, 0, 64);
    std::memset(packed + layout_.expert_bytes - 64, 0, 64);
    const bool generated = IsGeneratedPool(*request_.checkpoint, header_.format);
    if (generated) {
      const absl::Time start = absl::Now();
      RETURN_IF_ERROR(GenerateExpert(*request_.checkpoint, *request_.config, header_, idx, packed));
      worker.convert_seconds += SecondsSince(start);
    }
    for (size_t i = 0; i < 3; ++i) {
      const MatrixPart& part = parts->matrices[i];
      source_bytes_.fetch_add(part.bytes().size(), std::memory_order_relaxed);
      if (generated) continue;
      const absl::Time start = absl::Now();
      RETURN_IF_ERROR(
          request_.checkpoint->Read(part.bytes(), {worker.raw->data(), part.bytes().size()}));
      const absl::Time read = absl::Now();
      RETURN_IF_ERROR(Annotate(PackPart(part, worker, packed + parts->at[i]), place));
      worker.read_seconds += absl::ToDoubleSeconds(read - start);
      worker.convert_seconds += SecondsSince(read);
    }
    const std::span<const std::byte> bytes(packed, static_cast<size_t>(layout_.expert_bytes));
    const absl::Time start = absl::Now();
    header_.checksums[static_cast<size_t>(idx)] = PackChecksum(bytes);
    absl::Status written = file.Write(bytes, layout_.ExpertOffset(idx));
    worker.write_seconds += SecondsSince(start);
    return written;
  }

  // worker.raw, which holds part.bytes(), to `out`.
  absl::Status PackPart(const MatrixPart& part, const Worker& worker, std::byte* out) const {
    const std::byte* const raw = worker.raw->data();
    const StoredFormat stored = part.matrix.matrix().format;
    if (header_.format == PoolFormat::kNF4 && stored == StoredFormat::kNF4) {
      return KeepNF4(part, raw, out);
    }
    auto* const values = reinterpret_cast<float*>(worker.values->data());
    auto* const row = reinterpret_cast<float*>(worker.row->data());
    RETURN_IF_ERROR(Widen(*request_.checkpoint, part, raw, row, values));
    PackMatrix(header_.format, {values, part.num_rows, part.num_cols, part.num_cols}, out);
    return absl::OkStatus();
  }

  const PackRequest& request_;
  ExpertPackHeader header_;
  const ExpertPackLayout layout_;
  WorkerPool& pool_;
  std::vector<Worker> workers_;
  std::atomic<uint64_t> source_bytes_{0};
};

absl::Status CheckPackIsOf(const ExpertPack& pack, const ExpertPackHeader& wanted) {
  const ExpertPackHeader& found = pack.header();
  const auto differs = [&](std::string_view what, const auto& is, const auto& expected) {
    return FailedPreconditionF("{}: {} {}, expected {}", pack.path(), what, is, expected);
  };
  if (found.format != wanted.format) {
    return differs("pool format", PoolFormatName(found.format), PoolFormatName(wanted.format));
  }
  if (found.fingerprint != wanted.fingerprint) {
    return differs("of the model with fingerprint", found.fingerprint, wanted.fingerprint);
  }
  const auto shard = [](const ExpertPackHeader& h) {
    return ShardText({h.shard_index, h.num_shards,
                      h.split_by_experts ? ShardSplit::kExperts : ShardSplit::kWidth});
  };
  if (shard(found) != shard(wanted)) return differs("of shard", shard(found), shard(wanted));
  const std::pair<const char*, std::pair<int32_t, int32_t>> sizes[] = {
      {"num_layers", {found.num_layers, wanted.num_layers}},
      {"num_experts", {found.num_experts, wanted.num_experts}},
      {"hidden_size", {found.hidden_size, wanted.hidden_size}},
      {"moe_intermediate_size", {found.moe_intermediate_size, wanted.moe_intermediate_size}},
      {"first_expert", {found.first_expert, wanted.first_expert}},
      {"num_shard_experts", {found.num_shard_experts, wanted.num_shard_experts}},
      {"first_width", {found.first_width, wanted.first_width}},
      {"num_shard_width", {found.num_shard_width, wanted.num_shard_width}}};
  for (const auto& [name, values] : sizes) {
    if (values.first != values.second) return differs(name, values.first, values.second);
  }
  if (found.moe_layers != wanted.moe_layers) {
    return differs("moe layers", fmt::format("{}", fmt::join(found.moe_layers, ",")),
                   fmt::format("{}", fmt::join(wanted.moe_layers, ",")));
  }
  return absl::OkStatus();
}

class ExpertPackMaker final : public FittingPackMaker<ExpertPack> {
 public:
  ExpertPackMaker(const PackRequest& request, const ExpertPackHeader& wanted, WorkerPool& pool,
                  PackProgressFn progress)
      : FittingPackMaker(wanted.source_stamp, ", or replace it by `banyan pack --rebuild`"),
        request_(request),
        wanted_(wanted),
        pool_(pool),
        progress_(progress) {}

  absl::Status Build(const std::string& path) override {
    Builder builder(request_, wanted_, pool_);
    ASSIGN_OR_RETURN(stats_, builder.Build(path, progress_));
    return absl::OkStatus();
  }

 private:
  absl::Status CheckIsOf(const ExpertPack& pack) const override {
    return CheckPackIsOf(pack, wanted_);
  }

  const PackRequest& request_;
  const ExpertPackHeader& wanted_;
  WorkerPool& pool_;
  const PackProgressFn progress_;
};

}  // namespace

absl::StatusOr<ExpertPackHeader> WantedPackHeader(const PackRequest& request) {
  const ModelConfig& config = *request.config;
  ASSIGN_OR_RETURN(const ShardGeometry geometry,
                   MakeShardGeometry(config, request.shard, PoolFormatGroup(request.format)));
  ExpertPackHeader out;
  out.format = request.format;
  out.split_by_experts = request.shard.split == ShardSplit::kExperts;
  out.shard_index = request.shard.index;
  out.num_shards = request.shard.num_shards;
  out.num_layers = geometry.num_layers;
  out.num_experts = geometry.num_experts;
  out.hidden_size = geometry.hidden_size;
  out.moe_intermediate_size = geometry.moe_intermediate_size;
  out.first_expert = geometry.first_expert;
  out.num_shard_experts = geometry.num_shard_experts;
  out.first_width = geometry.first_width;
  out.num_shard_width = geometry.num_shard_width;
  out.fingerprint = request.checkpoint->fingerprint();
  out.source_stamp = request.checkpoint->Stamp();
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.mlps[static_cast<size_t>(layer)] == MlpKind::kMoe) out.moe_layers.push_back(layer);
  }
  if (out.moe_layers.empty()) {
    return FailedPreconditionF("{}: no layer has routed experts, there is nothing to pack",
                               request.checkpoint->directory());
  }
  return out;
}

absl::Status CheckPackFits(const ExpertPack& pack, const ExpertPackHeader& wanted) {
  RETURN_IF_ERROR(CheckPackIsOf(pack, wanted));
  return CheckPackFresh(pack.path(), pack.header().source_stamp, wanted.source_stamp);
}

absl::Status VerifyPack(const ExpertPack& pack, WorkerPool& pool, PackProgressFn progress) {
  return VerifyPieces(
      pack.file(), pack.Pieces(), [&](int64_t idx) { return pack.ExpertName(idx); }, "experts",
      pool, progress);
}

absl::StatusOr<ExpertPack> OpenPack(const PackRequest& request) {
  ASSIGN_OR_RETURN(const ExpertPackHeader wanted, WantedPackHeader(request));
  ASSIGN_OR_RETURN(ExpertPack pack, ExpertPack::Open(PackPath(request.pool_dir, wanted.fingerprint,
                                                              request.format, request.shard)));
  RETURN_IF_ERROR(CheckPackFits(pack, wanted));
  return pack;
}

absl::StatusOr<PackResult> EnsurePack(const PackRequest& request, WorkerPool& pool,
                                      PackProgressFn progress, bool rebuild) {
  ASSIGN_OR_RETURN(const ExpertPackHeader wanted, WantedPackHeader(request));
  ExpertPackMaker maker(request, wanted, pool, progress);
  ASSIGN_OR_RETURN(
      const EnsuredPack ensured,
      EnsurePackFile(PackPath(request.pool_dir, wanted.fingerprint, request.format, request.shard),
                     maker, progress, rebuild));
  return maker.Take(ensured);
}

}  // namespace banyan
