#include "common/io/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {

absl::Status FileError(const std::string& path, std::string_view what, int error) {
  absl::StatusCode code = absl::StatusCode::kDataLoss;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM || error == EMFILE) {
    code = absl::StatusCode::kResourceExhausted;
  } else if (error == EACCES || error == EPERM || error == EROFS) {
    code = absl::StatusCode::kPermissionDenied;
  } else if (error == ENOENT || error == ENOTDIR) {
    code = absl::StatusCode::kNotFound;
  }
  return StatusF(code, "{}: {}: {}", path, what, std::strerror(error));
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(path, "open", errno);
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  return result == 0 ? absl::OkStatus() : FileError(path, "fsync", error);
}

absl::StatusOr<std::optional<FileLock>> FileLock::Lock(const std::string& path, int fd) {
  if (fd < 0) return FileError(path, "open", errno);
  FileLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return std::optional<FileLock>(std::move(lock));
  if (errno == EWOULDBLOCK || errno == EINTR) return std::optional<FileLock>();
  return FileError(path, "flock", errno);
}

absl::StatusOr<std::optional<FileLock>> FileLock::TryLock(const std::string& path) {
  return Lock(path, ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
}

absl::StatusOr<std::optional<FileLock>> FileLock::TryLockDirectory(const std::string& path) {
  return Lock(path, ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

OutputFile::OutputFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(path_.c_str());
}

absl::StatusOr<OutputFile> OutputFile::Create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(path, "open", errno);
  return OutputFile(path, fd);
}

absl::Status OutputFile::Allocate(int64_t bytes, std::string_view what) const {
  if (bytes == 0 || ::fallocate(fd_, 0, 0, bytes) == 0) return absl::OkStatus();
  const int error = errno;
  if (error == EOPNOTSUPP || error == ENOSYS) return absl::OkStatus();
  struct statvfs info;
  const bool known = ::fstatvfs(fd_, &info) == 0;
  return Annotate(FileError(path_, "fallocate", error),
                  fmt::format("{} needs {} bytes, {} bytes are free", what, bytes,
                              known ? fmt::format("{}", info.f_bavail * info.f_frsize) : "?"));
}

int WriteAll(int fd, std::span<const std::byte> bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : ENOSPC;
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += n;
  }
  return 0;
}

absl::Status OutputFile::Write(std::span<const std::byte> bytes, int64_t offset) const {
  const int error = WriteAll(fd_, bytes, offset);
  return error == 0 ? absl::OkStatus() : FileError(path_, "write", error);
}

void OutputFile::StartWriteback(int64_t offset, int64_t bytes) const {
  (void)::sync_file_range(fd_, offset, bytes, SYNC_FILE_RANGE_WRITE);
}

absl::Status OutputFile::Sync() const {
  return ::fsync(fd_) == 0 ? absl::OkStatus() : FileError(path_, "fsync", errno);
}

absl::Status OutputFile::Commit(const std::string& name) {
  if (::rename(path_.c_str(), name.c_str()) != 0) return FileError(name, "rename", errno);
  Keep();
  return SyncDirectory(std::filesystem::path(name).parent_path().string());
}

void OutputFile::Keep() { ::close(std::exchange(fd_, -1)); }

}  // namespace banyan
