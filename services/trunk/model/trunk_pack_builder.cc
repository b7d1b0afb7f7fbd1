#include "services/trunk/model/trunk_pack_builder.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/config/tensor_inventory.h"
#include "common/parallel/first_error.h"
#include "common/pool/pack_path.h"
#include "services/trunk/model/decoded_matrix.h"
#include "services/trunk/ops/int8_rows.h"

namespace banyan::trunk {
namespace {

static_assert(kInt8GroupColumns == kTrunkPackGroupColumns);

// Pieces of a thread between two reports of progress.
constexpr int64_t kPiecesPerReport = 8;

double Seconds(absl::Time from, absl::Time to) { return absl::ToDoubleSeconds(to - from); }

absl::StatusOr<StoredMatrix> Find(const TrunkPackRequest& request, const TrunkPackMatrix& matrix) {
  return FindStoredMatrix(*request.checkpoint, matrix.name, Shape{matrix.rows, matrix.cols});
}

class Builder {
 public:
  Builder(const TrunkPackRequest& request, TrunkPackHeader header, WorkerPool& pool,
          PackProgressFn progress)
      : request_(request),
        header_(std::move(header)),
        layout_(LayoutOf(header_)),
        pool_(pool),
        progress_(progress),
        workers_(static_cast<size_t>(pool.num_threads())) {}

  absl::StatusOr<PackStats> Build(const std::string& path) {
    PackStats stats;
    const PackWriteSteps steps = {
        .checkpoint = request_.checkpoint,
        .file_bytes = layout_.file_bytes,
        .payload = [&](const OutputFile& file) { return WriteMatrices(file); },
        .header = [&] { return EncodeTrunkPackHeader(header_); },
        .verify = [&](const std::string& temporary) -> absl::Status {
          ASSIGN_OR_RETURN(const TrunkPack written, TrunkPack::Open(temporary));
          return VerifyTrunkPack(written, pool_, progress_);
        }};
    RETURN_IF_ERROR(WritePack(path, steps, &stats));
    stats.source_bytes = done_bytes_;
    stats.num_threads = pool_.num_threads();
    for (const Worker& worker : workers_) {
      stats.convert_seconds += worker.convert_seconds;
      stats.write_seconds += worker.write_seconds;
    }
    return stats;
  }

 private:
  struct Worker {
    DecodeBuffers buffers;
    std::vector<std::byte> decoded;
    std::vector<int8_t> codes;
    std::vector<float> scales;
    double convert_seconds = 0;  // reading included: a piece is read as it is decoded
    double write_seconds = 0;
  };

  absl::Status WriteMatrices(const OutputFile& file) {
    for (const TrunkPackMatrix& matrix : header_.matrices) {
      ASSIGN_OR_RETURN(const StoredMatrix stored, Find(request_, matrix));
      total_bytes_ += static_cast<uint64_t>(stored.stored_bytes());
    }
    if (!Report()) return absl::CancelledError("packing stopped");
    for (size_t i = 0; i < header_.matrices.size(); ++i) {
      RETURN_IF_ERROR(WriteMatrix(file, header_.matrices[i], layout_.places[i]));
    }
    return absl::OkStatus();
  }

  bool Report() const {
    return progress_({PackProgress::Phase::kConvert, done_bytes_, total_bytes_});
  }

  absl::Status WriteMatrix(const OutputFile& file, TrunkPackMatrix& matrix,
                           const TrunkPackLayout::Place& place) {
    ASSIGN_OR_RETURN(StoredMatrix stored, Find(request_, matrix));
    const auto stored_bytes = static_cast<uint64_t>(stored.stored_bytes());
    ASSIGN_OR_RETURN(const MatrixDecoder decoder,
                     MatrixDecoder::Create(*request_.checkpoint, std::move(stored)));
    matrix.checksums.resize(static_cast<size_t>(matrix.num_checksums()));
    const int64_t num_pieces = matrix.num_pieces();
    const int64_t batch = kPiecesPerReport * pool_.num_threads();
    const uint64_t before = done_bytes_;
    FirstError error;
    for (int64_t first = 0; first < num_pieces; first += batch) {
      const int64_t end = std::min(first + batch, num_pieces);
      pool_.ParallelFor(end - first, [&](int64_t i, int thread) {
        if (error.failed()) return;
        const absl::Status status = WritePiece(file, decoder, place, first + i, matrix,
                                               workers_[static_cast<size_t>(thread)]);
        if (!status.ok()) error.Set(status);
      });
      RETURN_IF_ERROR(error.Get());
      done_bytes_ = before + static_cast<uint64_t>(static_cast<double>(stored_bytes) *
                                                   static_cast<double>(end) /
                                                   static_cast<double>(num_pieces));
      if (!Report()) return absl::CancelledError("packing stopped");
    }
    file.StartWriteback(place.values, matrix.rows * matrix.row_bytes());
    return absl::OkStatus();
  }

  absl::Status WritePiece(const OutputFile& file, const MatrixDecoder& decoder,
                          const TrunkPackLayout::Place& place, int64_t piece,
                          TrunkPackMatrix& matrix, Worker& worker) const {
    const absl::Time start = absl::Now();
    const int64_t first = piece * matrix.piece_rows();
    const int64_t rows = std::min(matrix.piece_rows(), matrix.rows - first);
    const DType dtype = ResidentDType(decoder.dtype());
    worker.decoded.resize(static_cast<size_t>(rows * matrix.cols) * DTypeSizeBytes(dtype));
    RETURN_IF_ERROR(DecodeRows(*request_.checkpoint, decoder, first, rows, worker.buffers,
                               worker.decoded.data()));
    std::span<const std::byte> values = worker.decoded;
    if (matrix.has_scales()) {
      worker.codes.resize(static_cast<size_t>(rows * matrix.cols));
      worker.scales.resize(static_cast<size_t>(rows * matrix.row_scales()));
      QuantizeInt8Rows({dtype, Shape{rows, matrix.cols}, worker.decoded.data()}, 0, rows,
                       worker.codes.data(), worker.scales.data());
      values = std::as_bytes(std::span(worker.codes));
    }
    const auto at = static_cast<size_t>(piece);
    matrix.checksums[at] = PackChecksum(values);
    const absl::Time converted = absl::Now();
    RETURN_IF_ERROR(file.Write(values, place.values + first * matrix.row_bytes()));
    if (matrix.has_scales()) {
      const std::span<const std::byte> scales = std::as_bytes(std::span(worker.scales));
      matrix.checksums[at + static_cast<size_t>(matrix.num_pieces())] = PackChecksum(scales);
      RETURN_IF_ERROR(
          file.Write(scales, place.scales + first * matrix.row_scales() * int64_t{sizeof(float)}));
    }
    worker.convert_seconds += Seconds(start, converted);
    worker.write_seconds += Seconds(converted, absl::Now());
    return absl::OkStatus();
  }

  const TrunkPackRequest& request_;
  TrunkPackHeader header_;
  const TrunkPackLayout layout_;
  WorkerPool& pool_;
  const PackProgressFn progress_;
  std::vector<Worker> workers_;
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

// kFailedPrecondition names what the pack is of instead.
absl::Status CheckIsOf(const TrunkPack& pack, const TrunkPackHeader& wanted) {
  const TrunkPackHeader& found = pack.header();
  const auto differs = [&](std::string_view what, const auto& is, const auto& expected) {
    return FailedPreconditionF("{}: {} {}, expected {}", pack.path(), what, is, expected);
  };
  if (found.int8 != wanted.int8) {
    return differs("trunk format", found.int8 ? "int8" : "bf16", wanted.int8 ? "int8" : "bf16");
  }
  if (found.fingerprint != wanted.fingerprint) {
    return differs("of the model with fingerprint", found.fingerprint, wanted.fingerprint);
  }
  if (found.matrices.size() != wanted.matrices.size()) {
    return differs("matrices", found.matrices.size(), wanted.matrices.size());
  }
  const auto text = [](const TrunkPackMatrix& m) {
    return fmt::format("{} {} [{}, {}]", Printable(m.name), DTypeName(m.dtype), m.rows, m.cols);
  };
  for (size_t i = 0; i < wanted.matrices.size(); ++i) {
    const std::string is = text(found.matrices[i]);
    const std::string expected = text(wanted.matrices[i]);
    if (is != expected) return differs("holds", is, expected);
  }
  return absl::OkStatus();
}

class Maker final : public FittingPackMaker<TrunkPack> {
 public:
  Maker(const TrunkPackRequest& request, const TrunkPackHeader& wanted, WorkerPool& pool,
        PackProgressFn progress)
      : FittingPackMaker(wanted.source_stamp, ", or delete it"),
        request_(request),
        wanted_(wanted),
        pool_(pool),
        progress_(progress) {}

  absl::Status Build(const std::string& path) override {
    Builder builder(request_, wanted_, pool_, progress_);
    ASSIGN_OR_RETURN(stats_, builder.Build(path));
    return absl::OkStatus();
  }

 private:
  absl::Status CheckIsOf(const TrunkPack& pack) const override {
    return trunk::CheckIsOf(pack, wanted_);
  }

  const TrunkPackRequest& request_;
  const TrunkPackHeader& wanted_;
  WorkerPool& pool_;
  const PackProgressFn progress_;
};

}  // namespace

absl::StatusOr<TrunkPackHeader> WantedTrunkPackHeader(const TrunkPackRequest& request) {
  const Checkpoint& checkpoint = *request.checkpoint;
  TrunkPackHeader out;
  out.int8 = request.format == TrunkFormat::kInt8;
  out.fingerprint = checkpoint.fingerprint();
  out.source_stamp = checkpoint.Stamp();
  for (const TensorSpec& spec : TrunkTensors(*request.config)) {
    if (spec.shape.rank() != 2) continue;
    ASSIGN_OR_RETURN(const StoredMatrix stored,
                     FindStoredMatrix(checkpoint, spec.name, spec.shape));
    const bool codes = out.int8 && !IsKeptAsStored(spec.name);
    const bool plain = stored.format == StoredFormat::kBF16 || stored.format == StoredFormat::kF32;
    if (plain && !codes) continue;
    ASSIGN_OR_RETURN(const DType dtype, DequantizedDType(checkpoint, stored));
    out.matrices.push_back({.name = spec.name,
                            .dtype = codes ? DType::kI8 : ResidentDType(dtype),
                            .rows = spec.shape.dim(0),
                            .cols = spec.shape.dim(1),
                            .checksums = {}});
  }
  return out;
}

absl::StatusOr<TrunkPackResult> EnsureTrunkPack(const TrunkPackRequest& request,
                                                const TrunkPackHeader& wanted, WorkerPool& pool,
                                                PackProgressFn progress, bool rebuild) {
  Maker maker(request, wanted, pool, progress);
  ASSIGN_OR_RETURN(const EnsuredPack ensured,
                   EnsurePackFile(TrunkPackPath(request.pool_dir, wanted.fingerprint,
                                                TrunkFormatName(request.format)),
                                  maker, progress, rebuild));
  return maker.Take(ensured);
}

}  // namespace banyan::trunk
