// Files that appear whole or not at all, and locks between processes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace banyan {

// "PATH: WHAT: reason" with the code that fits the errno: kResourceExhausted (disk, quota, limits),
// kPermissionDenied, kNotFound, else kDataLoss.
absl::Status FileError(const std::string& path, std::string_view what, int error);

// What was created, removed or renamed in a directory is on the disk when this is OK.
absl::Status SyncDirectory(const std::string& path);

// An exclusive lock of a file or directory, held until the end of the object or of the process.
class FileLock {
 public:
  // nullopt: somebody else holds it. The file is created where there is none.
  static absl::StatusOr<std::optional<FileLock>> TryLock(const std::string& path);
  // The same for a directory that is there.
  static absl::StatusOr<std::optional<FileLock>> TryLockDirectory(const std::string& path);

  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  static absl::StatusOr<std::optional<FileLock>> Lock(const std::string& path, int fd);
  int fd_;
};

// Writes all of `bytes` at `offset`: 0 or an errno.
int WriteAll(int fd, std::span<const std::byte> bytes, int64_t offset);

// A new file that vanishes with this object unless it is committed or kept. Writes of different
// ranges may come from several threads.
class OutputFile {
 public:
  // An older file of this name is emptied.
  static absl::StatusOr<OutputFile> Create(const std::string& path);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  const std::string& path() const { return path_; }

  // Takes the blocks now, so that a full disk is known before the work; `what` names the whole in
  // the message ("the pack"). OK where the file system cannot.
  absl::Status Allocate(int64_t bytes, std::string_view what) const;
  absl::Status Write(std::span<const std::byte> bytes, int64_t offset) const;
  // Starts writing these bytes to the disk, so that little is left for the sync at the end.
  void StartWriteback(int64_t offset, int64_t bytes) const;
  absl::Status Sync() const;

  // Renames it over `name` of the same directory and syncs that. Last.
  absl::Status Commit(const std::string& name);
  // Leaves it under its own name. Last.
  void Keep();

 private:
  OutputFile(std::string path, int fd);
  std::string path_;
  int fd_;
};

}  // namespace banyan
