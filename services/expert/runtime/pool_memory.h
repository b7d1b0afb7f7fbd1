// Where the weights of a pack lie while they are served.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/file_descriptor.h"
#include "common/io/expert_pack.h"
#include "common/parallel/worker_pool.h"
#include "common/plan/shard_plan.h"
#include "services/expert/runtime/pool_description.h"

namespace banyan::expert {

using banyan::PoolMemoryMode;  // NOLINT(misc-unused-using-decls): part of this interface

struct PoolMemoryOptions {
  PoolMemoryMode mode = PoolMemoryMode::kMap;
  bool lock = false;          // mlock: nothing of it is ever swapped or dropped
  uint64_t budget_bytes = 0;  // 0: what the machine has
  std::string shm_dir = "/dev/shm";
  // Of a segment that is taken over, how long Load maps pages before it leaves the rest to a thread
  // of its own: they are in memory, only this process has not met them yet.
  absl::Duration map_time = absl::Milliseconds(300);
};

// Bytes of this very pool that an earlier start left in shared memory.
uint64_t SegmentBytesThere(const PoolDescription& pool, const PoolMemoryOptions& options);

// Immutable once loaded; thread-safe.
class PoolMemory {
 public:
  // Brings the whole pack into memory on the pool's threads. `progress` is called from this thread
  // with payload bytes done; false stops with kCancelled. A segment of shared memory that holds
  // this very pack is taken as it is. kResourceExhausted: memory, /dev/shm or the limit of locked
  // memory; kDataLoss: the pack cannot be read.
  static absl::StatusOr<std::unique_ptr<PoolMemory>> Load(
      ExpertPack pack, const PoolMemoryOptions& options, WorkerPool& pool,
      absl::FunctionRef<bool(uint64_t bytes_done)> progress);
  // Memory of the same layout that make(idx, out) fills, expert by expert, on the pool's threads:
  // with kShm a segment as of a pack whose table has no checksums (0), which is taken over where it
  // is there, else anonymous memory. Errors as of Load, or the first of `make`.
  static absl::StatusOr<std::unique_ptr<PoolMemory>> Generate(
      const ExpertPackHeader& header, const PoolMemoryOptions& options, WorkerPool& pool,
      absl::FunctionRef<absl::Status(int64_t idx, std::byte* out)> make,
      absl::FunctionRef<bool(uint64_t bytes_done)> progress);
  ~PoolMemory();
  PoolMemory(const PoolMemory&) = delete;
  PoolMemory& operator=(const PoolMemory&) = delete;

  const ExpertPackHeader& header() const { return header_; }
  const ExpertPackLayout& layout() const { return layout_; }
  // As ExpertPack::Expert.
  const std::byte* Expert(int64_t idx) const { return image_ + layout_.ExpertOffset(idx); }

  // The very file that is mapped (pack or segment, whatever lies under its name by now), opened for
  // reading only. kFailedPrecondition: memory of this process, with what to do.
  absl::StatusOr<FileDescriptor> OpenFile() const;

  bool reused_segment() const { return reused_segment_; }
  // How much of it the kernel has put on huge pages, as it says itself.
  uint64_t huge_page_bytes() const { return huge_page_bytes_; }

 private:
  explicit PoolMemory(const ExpertPackHeader& header);
  absl::Status LoadMap(ExpertPack pack, const PoolMemoryOptions& options, WorkerPool& pool,
                       absl::FunctionRef<bool(uint64_t)> progress);
  // Maps anonymous memory for the payload: the address of the image's byte 0, which lies before it.
  absl::StatusOr<std::byte*> MapAnonymous(const PoolMemoryOptions& options);
  absl::Status LoadAnonymous(const ExpertPack& pack, const PoolMemoryOptions& options,
                             WorkerPool& pool, absl::FunctionRef<bool(uint64_t)> progress);
  // fill_payload(fd, image): of the new segment; kResourceExhausted where it runs full.
  absl::Status LoadShm(const PoolMemoryOptions& options, WorkerPool& pool,
                       absl::FunctionRef<bool(uint64_t)> progress,
                       absl::FunctionRef<absl::Status(int fd, std::byte* image)> fill_payload);
  // Maps the pages of a segment that is there: with all threads, then in the background.
  absl::Status MapPages(const std::string& path, const PoolMemoryOptions& options, WorkerPool& pool,
                        absl::FunctionRef<bool(uint64_t)> progress);
  void CountHugePages(const PoolMemoryOptions& options);
  absl::Status Adopt(int fd, const std::string& path);
  absl::Status MapSegment(int fd, const std::string& path, int64_t bytes, bool writable);

  const ExpertPackHeader header_;
  const ExpertPackLayout layout_;
  std::optional<ExpertPack> pack_;  // kMap
  FileDescriptor segment_;          // kShm, for reading
  void* mapping_ = nullptr;         // all but kMap
  size_t mapping_bytes_ = 0;
  const std::byte* image_ = nullptr;  // where the pack's byte 0 is or would be
  bool reused_segment_ = false;
  std::atomic<bool> stop_mapping_{false};
  std::thread mapper_;
  uint64_t huge_page_bytes_ = 0;
};

// The segment of a pack: "banyan-<16 digits of the fingerprint>-int8-width-0of2".
std::string ShmSegmentName(const ExpertPackHeader& header);

}  // namespace banyan::expert
