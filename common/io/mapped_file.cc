#include "common/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/io/mapping_fault.h"

namespace banyan {
namespace {

absl::Status ErrnoStatus(const std::string& path, std::string_view call, int error) {
  absl::StatusCode code = absl::StatusCode::kDataLoss;
  if (error == ENOENT || error == ENOTDIR) code = absl::StatusCode::kNotFound;
  if (error == EACCES || error == EPERM) code = absl::StatusCode::kPermissionDenied;
  if (error == ENOMEM || error == EMFILE || error == ENFILE) {
    code = absl::StatusCode::kResourceExhausted;
  }
  return StatusF(code, "{}: {}: {}", path, call, std::strerror(error));
}

int64_t ModifiedNs(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: a FIFO in place of a file must not hang us; it has no effect on regular files.
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return ErrnoStatus(path, "open", errno);
  return OfDescriptor(std::move(file), path);
}

absl::StatusOr<MappedFile> MappedFile::OfDescriptor(FileDescriptor opened,
                                                    const std::string& name) {
  MappedFile file;
  file.path_ = name;
  file.file_ = std::move(opened);
  struct stat info;
  if (::fstat(file.fd(), &info) != 0) return ErrnoStatus(name, "fstat", errno);
  if (!S_ISREG(info.st_mode)) return DataLossF("{}: not a regular file", name);
  file.modified_ns_ = ModifiedNs(info);
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return file;
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(name, "mmap", errno);
  file.data_ = static_cast<const std::byte*>(data);
  file.size_ = size;
  AddMapping(file.data_, size, name);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      modified_ns_(other.modified_ns_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    Reset();
    path_ = std::move(other.path_);
    file_ = std::move(other.file_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    modified_ns_ = other.modified_ns_;
  }
  return *this;
}

MappedFile::~MappedFile() { Reset(); }

void MappedFile::Reset() {
  if (data_ != nullptr) {
    RemoveMapping(data_);
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
  data_ = nullptr;
  size_ = 0;
  file_ = FileDescriptor();
}

absl::Status MappedFile::Read(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return DataLossF("{}: {} bytes wanted at offset {}, but the file has {} bytes", path_,
                     out.size(), offset, size_);
  }
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        ::pread(fd(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(path_, "pread", errno);
    if (n == 0) {
      return DataLossF("{}: ends at byte {}, although it had {} bytes when opened", path_,
                       offset + done, size_);
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status MappedFile::CheckUnchanged() const {
  struct stat info;
  if (::fstat(fd(), &info) != 0) return ErrnoStatus(path_, "fstat", errno);
  if (static_cast<size_t>(info.st_size) != size_) {
    return DataLossF("{}: has {} bytes now, had {} when opened; it was changed while in use", path_,
                     info.st_size, size_);
  }
  if (ModifiedNs(info) != modified_ns_) {
    return DataLossF("{}: was modified while in use", path_);
  }
  return absl::OkStatus();
}

void MappedFile::Prefetch(std::span<const std::byte> range) {
  if (range.empty()) return;
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t aligned = first / page * page;
  // Advice only: a kernel that declines changes nothing.
  (void)::madvise(reinterpret_cast<void*>(aligned), range.size() + (first - aligned),
                  MADV_WILLNEED);
}

bool MappedFile::Populate(std::span<const std::byte> range) {
  if (range.empty()) return true;
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t aligned = first / page * page;
  auto* const at = reinterpret_cast<void*>(aligned);
  const size_t size = range.size() + (first - aligned);
#ifndef MADV_POPULATE_READ
  constexpr int MADV_POPULATE_READ = 22;  // Linux 5.14
#endif
  return ::madvise(at, size, MADV_POPULATE_READ) == 0;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (file.bytes().size() > max_bytes) {
    return InvalidArgumentF("{}: {} bytes, expected at most {}", path, file.bytes().size(),
                            max_bytes);
  }
  std::string text(file.bytes().size(), '\0');
  RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace banyan
