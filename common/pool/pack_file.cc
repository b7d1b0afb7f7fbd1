#include "common/pool/pack_file.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/parallel/first_error.h"
#include "common/pool/aligned_bytes.h"

namespace banyan {
namespace {

constexpr char kTemporarySuffix[] = ".tmp";
constexpr char kLockSuffix[] = ".lock";
constexpr absl::Duration kLockPoll = absl::Milliseconds(100);
// Pieces of a thread between two reports of progress.
constexpr int64_t kPiecesPerReport = 4;

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// What runs killed long ago left in the folder: temporaries whose lock is free.
void RemoveLeftovers(const std::string& folder) {
  std::error_code error;
  std::filesystem::directory_iterator it(folder, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    const std::string path = it->path().string();
    if (!path.ends_with(std::string(".pack") + kTemporarySuffix)) continue;
    const std::string pack = path.substr(0, path.size() - std::strlen(kTemporarySuffix));
    const auto lock = FileLock::TryLock(pack + kLockSuffix);
    if (lock.ok() && lock->has_value()) ::unlink(path.c_str());
  }
}

}  // namespace

absl::StatusOr<EnsuredPack> EnsurePackFile(const std::string& path, PackMaker& maker,
                                           PackProgressFn progress, bool rebuild) {
  absl::Status there = maker.OpenFitting(path);
  if (there.ok() && !rebuild) return EnsuredPack{};
  if (!there.ok() && !rebuild) RETURN_IF_ERROR(maker.CheckNotForeign(path));
  const absl::Status rejected = absl::IsNotFound(there) ? absl::OkStatus() : there;

  const std::string folder = std::filesystem::path(path).parent_path().string();
  std::error_code made;
  std::filesystem::create_directories(folder, made);
  if (made) return Annotate(FileError(folder, "mkdir", made.value()), "--pool_dir");
  while (true) {
    ASSIGN_OR_RETURN(const std::optional<FileLock> lock, FileLock::TryLock(path + kLockSuffix));
    if (!lock) {
      if (!progress({PackProgress::Phase::kWait, 0, 0})) {
        return absl::CancelledError("packing stopped");
      }
      absl::SleepFor(kLockPoll);
      continue;
    }
    if (!rebuild) {  // whoever held the lock may have made it
      if (maker.OpenFitting(path).ok()) return EnsuredPack{};
      RETURN_IF_ERROR(maker.CheckNotForeign(path));
    }
    // With this lock held, this run's own temporary is opened anew and emptied.
    RemoveLeftovers(folder);
    RETURN_IF_ERROR(maker.Build(path));
    RETURN_IF_ERROR(maker.OpenFitting(path));
    return EnsuredPack{rejected, true};
  }
}

absl::Status ForeignPack(const absl::Status& what, std::string_view replace_by) {
  return absl::Status(what.code(),
                      fmt::format("{}; it is not replaced: move it away, or give another "
                                  "--pool_dir{}",
                                  ToStd(what.message()), replace_by));
}

absl::Status CheckPackFresh(const std::string& path, uint64_t source_stamp, uint64_t wanted_stamp) {
  if (source_stamp == wanted_stamp) return absl::OkStatus();
  return FailedPreconditionF(
      "{}: the checkpoint's files were rewritten or copied since it was packed (stamp {:016x}, "
      "now {:016x})",
      path, source_stamp, wanted_stamp);
}

void LogPacked(const std::string& path, const PackStats& stats) {
  LogInfo("packed", {{"pack", path},
                     {"source_bytes", stats.source_bytes},
                     {"pack_bytes", stats.pack_bytes},
                     {"seconds", stats.seconds},
                     {"sync_seconds", stats.sync_seconds},
                     {"verify_seconds", stats.verify_seconds}});
}

absl::Status WritePack(const std::string& path, const PackWriteSteps& steps, PackStats* stats) {
  const std::string temporary = path + kTemporarySuffix;
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(temporary));
  RETURN_IF_ERROR(file.Allocate(steps.file_bytes, "the pack"));
  RETURN_IF_ERROR(steps.checkpoint->CheckFilesUnchanged());
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(steps.payload(file));
  RETURN_IF_ERROR(steps.checkpoint->CheckFilesUnchanged());
  RETURN_IF_ERROR(file.Write(steps.header(), 0));
  stats->seconds = SecondsSince(start);
  const absl::Time sync_start = absl::Now();
  RETURN_IF_ERROR(file.Sync());
  stats->sync_seconds = SecondsSince(sync_start);
  const absl::Time verify_start = absl::Now();
  RETURN_IF_ERROR(steps.verify(temporary));
  stats->verify_seconds = SecondsSince(verify_start);
  RETURN_IF_ERROR(file.Commit(path));
  stats->pack_bytes = static_cast<uint64_t>(steps.file_bytes);
  return absl::OkStatus();
}

absl::Status VerifyPieces(const MappedFile& file, std::span<const PackPiece> pieces,
                          absl::FunctionRef<std::string(int64_t idx)> name, std::string_view things,
                          WorkerPool& pool, PackProgressFn progress) {
  const auto num_pieces = static_cast<int64_t>(pieces.size());
  uint64_t total = 0;
  uint64_t largest = 0;
  for (const PackPiece& piece : pieces) {
    total += piece.bytes;
    largest = std::max(largest, piece.bytes);
  }
  std::vector<std::optional<AlignedBytes>> buffers(static_cast<size_t>(pool.num_threads()));
  FirstError error;
  std::atomic<int64_t> num_damaged{0};
  std::atomic<int64_t> first_damaged{num_pieces};
  const int64_t batch = kPiecesPerReport * pool.num_threads();
  uint64_t done = 0;
  for (int64_t first = 0; first < num_pieces; first += batch) {
    if (!progress({PackProgress::Phase::kVerify, done, total})) {
      return absl::CancelledError("verification stopped");
    }
    const int64_t count = std::min(batch, num_pieces - first);
    pool.ParallelFor(count, [&](int64_t i, int thread) {
      std::optional<AlignedBytes>& buffer = buffers[static_cast<size_t>(thread)];
      if (!buffer) buffer.emplace(static_cast<int64_t>(largest));
      const int64_t idx = first + i;
      const PackPiece& piece = pieces[static_cast<size_t>(idx)];
      const std::span<std::byte> bytes(buffer->data(), static_cast<size_t>(piece.bytes));
      // Read, not mapped: a failing disk is a status and not a fault.
      if (absl::Status status = file.Read(piece.offset, bytes); !status.ok()) {
        error.Set(Annotate(status, name(idx)));
      } else if (PackChecksum(bytes) != piece.checksum) {
        num_damaged.fetch_add(1);
        int64_t smallest = first_damaged.load();
        while (idx < smallest && !first_damaged.compare_exchange_weak(smallest, idx)) {
        }
      }
    });
    RETURN_IF_ERROR(error.Get());
    for (int64_t i = 0; i < count; ++i) done += pieces[static_cast<size_t>(first + i)].bytes;
  }
  progress({PackProgress::Phase::kVerify, total, total});
  if (num_damaged == 0) return absl::OkStatus();
  return DataLossF(
      "{}: {} is damaged: its bytes do not have the checksum {:016x}; {} of {} {} are damaged",
      file.path(), name(first_damaged), pieces[static_cast<size_t>(first_damaged)].checksum,
      num_damaged.load(), num_pieces, things);
}

absl::Status VerifyTrunkPack(const TrunkPack& pack, WorkerPool& pool, PackProgressFn progress) {
  return VerifyPieces(
      pack.file(), pack.Pieces(), [&](int64_t idx) { return pack.PieceName(idx); }, "pieces", pool,
      progress);
}

}  // namespace banyan
