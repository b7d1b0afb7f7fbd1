#include "services/expert/runtime/pool_memory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/byte_size.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/output_file.h"
#include "common/io/pack_segment.h"
#include "common/pool/shard.h"
#include "services/expert/runtime/huge_pages.h"

namespace banyan::expert {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kHugePageBytes = 2 << 20;
constexpr int64_t kChunkBytes = 8 << 20;  // of one read or one population
// Chunks of a thread between two reports of progress.
constexpr int64_t kChunksPerReport = 8;
constexpr int64_t kExpertsPerReport = 16;  // of a thread, generated

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

absl::Status SystemError(std::string_view what, int error) {
  absl::StatusCode code = absl::StatusCode::kDataLoss;
  if (error == ENOMEM || error == ENOSPC || error == EMFILE || error == EAGAIN || error == EFAULT) {
    code = absl::StatusCode::kResourceExhausted;
  } else if (error == EACCES || error == EPERM) {
    code = absl::StatusCode::kPermissionDenied;
  }
  return StatusF(code, "{}: {}", what, std::strerror(error));
}

// Runs body(first, size) over [0, total) in chunks on all threads, with progress; the first error.
absl::Status ForChunks(int64_t total, WorkerPool& pool, absl::FunctionRef<bool(uint64_t)> progress,
                       absl::FunctionRef<int(int64_t first, int64_t size)> body,
                       std::string_view what) {
  std::atomic<int> error{0};
  const int64_t step = kChunkBytes * kChunksPerReport * pool.num_threads();
  for (int64_t first = 0; first < total; first += step) {
    if (!progress(static_cast<uint64_t>(first))) return absl::CancelledError("load stopped");
    const int64_t bytes = std::min(step, total - first);
    pool.ParallelFor((bytes + kChunkBytes - 1) / kChunkBytes, [&](int64_t i, int) {
      if (error.load(std::memory_order_relaxed) != 0) return;
      const int64_t at = first + i * kChunkBytes;
      const int failed = body(at, std::min(kChunkBytes, total - at));
      if (failed != 0) error.store(failed, std::memory_order_relaxed);
    });
    if (error != 0) return SystemError(what, error);
  }
  progress(static_cast<uint64_t>(total));
  return absl::OkStatus();
}

// Makes the pages of a mapping present; an errno.
int Populate(const std::byte* data, int64_t size) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = address / kPageBytes * kPageBytes;
  const size_t bytes = static_cast<size_t>(size) + (address - begin);
#ifdef MADV_POPULATE_READ
  if (::madvise(reinterpret_cast<void*>(begin), bytes, MADV_POPULATE_READ) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
#endif
  for (int64_t i = 0; i < size; i += kPageBytes) {
    (void)*static_cast<const volatile std::byte*>(data + i);
  }
  return 0;
}

int ReadAll(int fd, std::byte* out, int64_t size, int64_t offset) {
  while (size > 0) {
    const ssize_t n = ::pread(fd, out, static_cast<size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return EIO;
    out += n;
    offset += n;
    size -= n;
  }
  return 0;
}

// Whether most of a file is in the page cache, by looking at some of it.
bool MostlyCached(std::span<const std::byte> file) {
  constexpr size_t kLooks = 64;
  const size_t pages = file.size() / kPageBytes;
  size_t cached = 0;
  size_t looked = 0;
  for (size_t i = 0; i < kLooks && pages > 0; ++i) {
    unsigned char present = 0;
    const size_t page = i * pages / kLooks;
    void* const at = const_cast<std::byte*>(file.data() + page * kPageBytes);
    if (::mincore(at, kPageBytes, &present) != 0) return false;
    cached += present & 1;
    ++looked;
  }
  return cached * 2 > looked;
}

// The payload of a pack into memory of the same layout.
absl::Status ReadPayload(const ExpertPack& pack, std::byte* image, WorkerPool& pool,
                         absl::FunctionRef<bool(uint64_t)> progress) {
  const ExpertPackLayout& layout = pack.layout();
  const std::string again = fmt::format("/proc/self/fd/{}", pack.file().fd());
  // Around the page cache, unless the bytes are there already or the file system cannot.
  const FileDescriptor direct(MostlyCached(pack.file().bytes())
                                  ? -1
                                  : ::open(again.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  return ForChunks(
      layout.file_bytes - layout.payload_offset, pool, progress,
      [&](int64_t first, int64_t size) {
        const int64_t at = layout.payload_offset + first;
        const int64_t whole = size / kPageBytes * kPageBytes;
        int64_t done = 0;
        if (direct.get() >= 0 && whole > 0 && ReadAll(direct.get(), image + at, whole, at) == 0) {
          done = whole;
        }
        return ReadAll(pack.file().fd(), image + at + done, size - done, at + done);
      },
      pack.path());
}

// Room in a segment for what is written to `data`, which lies at `offset` of the file: as huge
// pages where it may have them. An errno; a process that touched a page for which there is no room
// would be ended.
int TakeRoom(int fd, std::byte* data, int64_t size, int64_t offset) {
#ifdef MADV_POPULATE_WRITE
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = address / kPageBytes * kPageBytes;
  const size_t bytes = static_cast<size_t>(size) + (address - begin);
  if (::madvise(reinterpret_cast<void*>(begin), bytes, MADV_POPULATE_WRITE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
#else
  (void)data;
#endif
  return ::posix_fallocate(fd, offset, size);
}

absl::Status Lock(const void* data, size_t bytes) {
#ifdef MLOCK_ONFAULT
  if (::mlock2(data, bytes, MLOCK_ONFAULT) == 0) return absl::OkStatus();
#else
  if (::mlock(data, bytes) == 0) return absl::OkStatus();
#endif
  const int error = errno;
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  return StatusF(absl::StatusCode::kResourceExhausted,
                 "--mlock: {} cannot be locked into memory: {}; the limit of locked memory is {} "
                 "(ulimit -l, LimitMEMLOCK= of systemd, memlock of docker)",
                 FormatByteSize(bytes), std::strerror(error),
                 limit.rlim_cur == RLIM_INFINITY ? "none" : FormatByteSize(limit.rlim_cur));
}

std::string SegmentName(std::string_view fingerprint, std::string_view format,
                        const ShardSpec& shard) {
  return fmt::format("banyan-{}-{}-{}", fingerprint.substr(0, 16), format, ShardText(shard));
}

// `what`: "has 1.00 MiB free".
absl::Status NoRoomForSegment(int64_t bytes, const std::string& shm_dir, std::string_view what) {
  return StatusF(absl::StatusCode::kResourceExhausted,
                 "--pool_memory shm: the pool needs {}, {} {} (shm_size of docker, mount -o "
                 "remount,size=)",
                 FormatByteSize(static_cast<uint64_t>(bytes)), shm_dir, what);
}

}  // namespace

std::string ShmSegmentName(const ExpertPackHeader& header) {
  return SegmentName(header.fingerprint, PoolFormatName(header.format),
                     {header.shard_index, header.num_shards,
                      header.split_by_experts ? ShardSplit::kExperts : ShardSplit::kWidth});
}

uint64_t SegmentBytesThere(const PoolDescription& pool, const PoolMemoryOptions& options) {
  if (options.mode != PoolMemoryMode::kShm) return 0;
  const std::string segment =
      fmt::format("{}/{}", options.shm_dir, SegmentName(pool.fingerprint, pool.format, pool.shard));
  struct stat info;
  return ::stat(segment.c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_blocks) * 512 : 0;
}

PoolMemory::PoolMemory(const ExpertPackHeader& header)
    : header_(header), layout_(LayoutOf(header)) {}

PoolMemory::~PoolMemory() {
  stop_mapping_ = true;
  if (mapper_.joinable()) mapper_.join();
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_bytes_);
}

absl::StatusOr<std::unique_ptr<PoolMemory>> PoolMemory::Load(
    ExpertPack pack, const PoolMemoryOptions& options, WorkerPool& pool,
    absl::FunctionRef<bool(uint64_t)> progress) {
  std::unique_ptr<PoolMemory> memory(new PoolMemory(pack.header()));
  switch (options.mode) {
    case PoolMemoryMode::kMap:
      RETURN_IF_ERROR(memory->LoadMap(std::move(pack), options, pool, progress));
      break;
    case PoolMemoryMode::kAnonymous:
      RETURN_IF_ERROR(memory->LoadAnonymous(pack, options, pool, progress));
      break;
    case PoolMemoryMode::kShm:
      RETURN_IF_ERROR(memory->LoadShm(options, pool, progress, [&](int, std::byte* image) {
        return ReadPayload(pack, image, pool, progress);
      }));
      break;
  }
  memory->CountHugePages(options);
  return memory;
}

absl::StatusOr<std::unique_ptr<PoolMemory>> PoolMemory::Generate(
    const ExpertPackHeader& header, const PoolMemoryOptions& options, WorkerPool& pool,
    absl::FunctionRef<absl::Status(int64_t, std::byte*)> make,
    absl::FunctionRef<bool(uint64_t)> progress) {
  ExpertPackHeader unchecked = header;
  unchecked.checksums.resize(static_cast<size_t>(header.num_packed_experts()));
  std::unique_ptr<PoolMemory> memory(new PoolMemory(unchecked));
  const ExpertPackLayout& layout = memory->layout_;
  const int64_t num_experts = header.num_packed_experts();
  const int64_t batch = kExpertsPerReport * pool.num_threads();
  // `segment`: the file that `image` is mapped from, -1 for none.
  const auto generate = [&](int segment, std::byte* image) -> absl::Status {
    absl::Mutex mutex;
    absl::Status error;
    for (int64_t first = 0; first < num_experts; first += batch) {
      if (!progress(static_cast<uint64_t>(first * layout.expert_bytes))) {
        return absl::CancelledError("load stopped");
      }
      pool.ParallelFor(std::min(batch, num_experts - first), [&](int64_t i, int) {
        const int64_t at = layout.ExpertOffset(first + i);
        const int no_room =
            segment < 0 ? 0 : TakeRoom(segment, image + at, layout.expert_bytes, at);
        const absl::Status status =
            no_room == 0 ? make(first + i, image + at) : SystemError("the segment", no_room);
        if (status.ok()) return;
        absl::MutexLock lock(&mutex);
        error.Update(status);
      });
      RETURN_IF_ERROR(error);
    }
    progress(static_cast<uint64_t>(num_experts * layout.expert_bytes));
    return absl::OkStatus();
  };
  if (options.mode == PoolMemoryMode::kShm) {
    RETURN_IF_ERROR(memory->LoadShm(options, pool, progress, generate));
  } else {
    ASSIGN_OR_RETURN(std::byte* const image, memory->MapAnonymous(options));
    RETURN_IF_ERROR(generate(-1, image));
    (void)::mprotect(memory->mapping_, memory->mapping_bytes_, PROT_READ);
  }
  memory->CountHugePages(options);
  return memory;
}

void PoolMemory::CountHugePages(const PoolMemoryOptions& options) {
  if (options.mode == PoolMemoryMode::kShm && !MayHaveHugePages(options.shm_dir)) return;
  huge_page_bytes_ = HugePageBytes(Expert(0), mapping_bytes_);
}

absl::StatusOr<FileDescriptor> PoolMemory::OpenFile() const {
  const int mapped = pack_.has_value() ? pack_->file().fd() : segment_.get();
  if (mapped < 0) {
    return FailedPreconditionF(
        "the pool is not in a file but in memory of the host's process: start the host with "
        "--pool_memory shm, or map where it has a pack");
  }
  FileDescriptor file(::fcntl(mapped, F_DUPFD_CLOEXEC, 0));
  if (!file.valid()) return SystemError("the file of the pool", errno);
  return file;
}

absl::Status PoolMemory::LoadMap(ExpertPack pack, const PoolMemoryOptions& options,
                                 WorkerPool& pool, absl::FunctionRef<bool(uint64_t)> progress) {
  pack_.emplace(std::move(pack));
  image_ = pack_->file().bytes().data();
  RETURN_IF_ERROR(pack_->file().CheckUnchanged());
  const std::byte* const payload = image_ + layout_.payload_offset;
  const int64_t bytes = layout_.file_bytes - layout_.payload_offset;
  if (options.lock) RETURN_IF_ERROR(Lock(payload, static_cast<size_t>(bytes)));
  MappedFile::Prefetch({payload, static_cast<size_t>(std::min(bytes, kChunkBytes * 16))});
  return ForChunks(
      bytes, pool, progress,
      [&](int64_t first, int64_t size) { return Populate(payload + first, size); }, pack_->path());
}

absl::StatusOr<std::byte*> PoolMemory::MapAnonymous(const PoolMemoryOptions& options) {
  const int64_t payload_bytes = layout_.file_bytes - layout_.payload_offset;
  mapping_bytes_ = static_cast<size_t>(RoundUp(payload_bytes, kHugePageBytes));
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
  void* mapping =
      ::mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, kFlags | MAP_HUGETLB, -1, 0);
  if (mapping == MAP_FAILED) {
    // No pool of huge pages: transparent ones, on a boundary of theirs.
    const size_t bytes = mapping_bytes_ + static_cast<size_t>(kHugePageBytes);
    mapping = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kFlags | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
      const int error = errno;
      mapping_bytes_ = 0;
      return SystemError(fmt::format("{} of memory", FormatByteSize(bytes)), error);
    }
    const auto address = reinterpret_cast<uintptr_t>(mapping);
    const auto aligned =
        static_cast<uintptr_t>(RoundUp(static_cast<int64_t>(address), kHugePageBytes));
    if (aligned > address) ::munmap(mapping, aligned - address);
    const uintptr_t end = address + bytes;
    if (end > aligned + mapping_bytes_) {
      ::munmap(reinterpret_cast<void*>(aligned + mapping_bytes_), end - aligned - mapping_bytes_);
    }
    mapping = reinterpret_cast<void*>(aligned);
    (void)::madvise(mapping, mapping_bytes_, MADV_HUGEPAGE);
  }
  mapping_ = mapping;
  image_ = static_cast<const std::byte*>(mapping) - layout_.payload_offset;
  if (options.lock) RETURN_IF_ERROR(Lock(mapping_, mapping_bytes_));
  return static_cast<std::byte*>(mapping) - layout_.payload_offset;
}

absl::Status PoolMemory::LoadAnonymous(const ExpertPack& pack, const PoolMemoryOptions& options,
                                       WorkerPool& pool,
                                       absl::FunctionRef<bool(uint64_t)> progress) {
  ASSIGN_OR_RETURN(std::byte* const image, MapAnonymous(options));
  RETURN_IF_ERROR(ReadPayload(pack, image, pool, progress));
  (void)::mprotect(mapping_, mapping_bytes_, PROT_READ);
  return absl::OkStatus();
}

absl::Status PoolMemory::MapSegment(int fd, const std::string& path, int64_t bytes, bool writable) {
  mapping_bytes_ = static_cast<size_t>(bytes);
  void* const mapping = ::mmap(nullptr, mapping_bytes_,
                               writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED) return SystemError(path, errno);
  mapping_ = mapping;
  image_ = static_cast<const std::byte*>(mapping);
  (void)::madvise(mapping_, mapping_bytes_, MADV_HUGEPAGE);
  return absl::OkStatus();
}

// Takes over a segment that an earlier process filled with this very pool.
absl::Status PoolMemory::Adopt(int fd, const std::string& path) {
  const int64_t bytes = PackSegmentBytes(layout_.file_bytes);
  struct stat info;
  if (::fstat(fd, &info) != 0) return SystemError(path, errno);
  if (!S_ISREG(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 022) != 0) {
    return StatusF(absl::StatusCode::kPermissionDenied,
                   "{}: owner {} mode {:o}, expected a segment that only user {} writes", path,
                   info.st_uid, info.st_mode & 07777u, ::geteuid());
  }
  if (info.st_size != bytes) {
    return DataLossF("{}: {} bytes, expected {}", path, info.st_size, bytes);
  }
  const std::vector<std::byte> wanted = EncodeExpertPackHeader(header_);
  std::vector<std::byte> found(wanted.size());
  PackSegmentTrailer trailer;
  const PackSegmentTrailer complete = MakePackSegmentTrailer(layout_.file_bytes, wanted);
  if (ReadAll(fd, found.data(), layout_.header_bytes, 0) != 0 ||
      ReadAll(fd, reinterpret_cast<std::byte*>(&trailer), sizeof(trailer),
              bytes - kPackSegmentPageBytes) != 0) {
    return DataLossF("{}: cannot be read", path);
  }
  if (std::memcmp(&trailer, &complete, sizeof(trailer)) != 0) {
    return DataLossF("{}: was not filled to its end", path);
  }
  if (found != wanted) return DataLossF("{}: holds another pack", path);
  return MapSegment(fd, path, bytes, /*writable=*/false);
}

absl::Status PoolMemory::MapPages(const std::string& path, const PoolMemoryOptions& options,
                                  WorkerPool& pool, absl::FunctionRef<bool(uint64_t)> progress) {
  const std::byte* const payload = image_ + layout_.payload_offset;
  const int64_t total = layout_.file_bytes - layout_.payload_offset;
  const absl::Time until = absl::Now() + options.map_time;
  int64_t mapped = 0;
  bool stopped = false;
  const auto go_on = [&](uint64_t done) {
    mapped = static_cast<int64_t>(done);
    stopped = !progress(done);
    return !stopped && absl::Now() < until;
  };
  absl::Status status = ForChunks(
      total, pool, go_on,
      [&](int64_t first, int64_t size) { return Populate(payload + first, size); }, path);
  if (stopped || !absl::IsCancelled(status)) return status;
  mapper_ = std::thread([this, payload, mapped, total] {
    // Whatever computes goes first. One fault at a time: no lock is held from page to page.
    constexpr int kLeastUrgent = 19;
    (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kLeastUrgent);
    for (int64_t at = mapped; at < total && !stop_mapping_; at += kPageBytes) {
      (void)*static_cast<const volatile std::byte*>(payload + at);
    }
  });
  progress(static_cast<uint64_t>(total));
  return absl::OkStatus();
}

absl::Status PoolMemory::LoadShm(const PoolMemoryOptions& options, WorkerPool& pool,
                                 absl::FunctionRef<bool(uint64_t)> progress,
                                 absl::FunctionRef<absl::Status(int, std::byte*)> fill_payload) {
  const std::string path = options.shm_dir + "/" + ShmSegmentName(header_);
  const int64_t bytes = PackSegmentBytes(layout_.file_bytes);
  const std::string temporary = path + ".tmp";
  while (true) {
    if (FileDescriptor there(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
        there.get() >= 0 && Adopt(there.get(), path).ok()) {
      reused_segment_ = true;
      segment_ = std::move(there);
      if (options.lock) RETURN_IF_ERROR(Lock(mapping_, mapping_bytes_));
      return MapPages(path, options, pool, progress);
    }
    const FileDescriptor fd(
        ::open(temporary.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd.get() < 0) return SystemError(temporary, errno);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {  // another process fills it
      if (!progress(0)) return absl::CancelledError("load stopped");
      absl::SleepFor(absl::Milliseconds(100));
      continue;
    }
    struct stat opened;
    struct stat named;
    if (::fstat(fd.get(), &opened) != 0 || ::stat(temporary.c_str(), &named) != 0 ||
        opened.st_ino != named.st_ino) {
      continue;  // renamed while this process waited
    }
    if (opened.st_uid != ::geteuid()) {
      return StatusF(absl::StatusCode::kPermissionDenied, "{}: belongs to user {}", temporary,
                     opened.st_uid);
    }
    // What a killed run left is given back, and an old segment of this name too: the pool is there
    // once, not twice.
    ::unlink(path.c_str());
    if (::ftruncate(fd.get(), 0) != 0) return SystemError(temporary, errno);
    struct statvfs space;
    if (::fstatvfs(fd.get(), &space) == 0 && space.f_blocks > 0 &&
        static_cast<int64_t>(space.f_bavail * space.f_frsize) < bytes) {
      ::unlink(temporary.c_str());
      return NoRoomForSegment(
          bytes, options.shm_dir,
          fmt::format("has {} free", FormatByteSize(space.f_bavail * space.f_frsize)));
    }
    const auto fill = [&]() -> absl::Status {
      if (::ftruncate(fd.get(), bytes) != 0) {
        const int error = errno;
        if (error != EFBIG) return SystemError(temporary, error);
        return NoRoomForSegment(
            bytes, options.shm_dir,
            fmt::format("takes no file of that size ({})", std::strerror(error)));
      }
      RETURN_IF_ERROR(MapSegment(fd.get(), temporary, bytes, /*writable=*/true));
      if (options.lock) RETURN_IF_ERROR(Lock(mapping_, mapping_bytes_));
      // Somebody else may take the room meanwhile. The kernel says so where it writes to the
      // segment; this process never touches a page that may not be there.
      if (absl::Status filled = fill_payload(fd.get(), static_cast<std::byte*>(mapping_));
          !filled.ok()) {
        return absl::IsResourceExhausted(filled)
                   ? NoRoomForSegment(bytes, options.shm_dir, "ran full before it was there")
                   : filled;
      }
      const std::vector<std::byte> header = EncodeExpertPackHeader(header_);
      const PackSegmentTrailer trailer = MakePackSegmentTrailer(layout_.file_bytes, header);
      int error = WriteAll(fd.get(), header, 0);
      if (error == 0) {
        error = WriteAll(fd.get(), std::as_bytes(std::span(&trailer, 1)),
                         bytes - kPackSegmentPageBytes);
      }
      if (error == ENOSPC) {
        return NoRoomForSegment(bytes, options.shm_dir, "ran full before it was there");
      }
      if (error != 0) return SystemError(temporary, error);
      (void)::mprotect(mapping_, mapping_bytes_, PROT_READ);
      segment_ = FileDescriptor(
          ::open(fmt::format("/proc/self/fd/{}", fd.get()).c_str(), O_RDONLY | O_CLOEXEC));
      if (!segment_.valid()) return SystemError(temporary, errno);
      if (::rename(temporary.c_str(), path.c_str()) != 0) return SystemError(path, errno);
      return absl::OkStatus();
    };
    absl::Status status = fill();
    if (!status.ok()) ::unlink(temporary.c_str());
    return status;
  }
}

}  // namespace banyan::expert
