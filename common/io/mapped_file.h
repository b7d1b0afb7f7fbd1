// A regular file mapped read-only, and reads that cannot fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/file_descriptor.h"

namespace banyan {

// Immutable; thread-safe. Movable; the mapping keeps its address when moved.
//
// Touching bytes() faults with SIGBUS if somebody truncates the file while it is mapped
// (mapping_fault.h names it). Parsers
// therefore take their (small) input through Read, which reports kDataLoss instead; whoever streams
// payload out of bytes() calls CheckUnchanged before and after.
class MappedFile {
 public:
  // kNotFound (no such file), kPermissionDenied, kDataLoss (not a regular file, cannot be mapped).
  // An empty file opens with empty bytes().
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  // The same of a file that somebody opened for reading; `name` is what messages call it, path().
  static absl::StatusOr<MappedFile> OfDescriptor(FileDescriptor file, const std::string& name);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  int fd() const { return file_.get(); }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  int64_t modified_ns() const { return modified_ns_; }  // at Open, since the epoch

  // Copies out.size() bytes from `offset` by pread. kDataLoss when the file does not hold them.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

  // kDataLoss when size or modification time differ from what they were at Open.
  absl::Status CheckUnchanged() const;

  // Asks the kernel to read ahead the pages that hold `range`, which lies in a live mapping.
  static void Prefetch(std::span<const std::byte> range);

  // Brings the pages of `range`, which lies in a live mapping, into memory and into this process's
  // page table: what touching each of them does, several times as fast. False when it could not:
  // pages that cannot be read fault when they are touched. Reading ahead is read_ahead.h's.
  static bool Populate(std::span<const std::byte> range);

 private:
  MappedFile() = default;
  void Reset();

  std::string path_;
  FileDescriptor file_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int64_t modified_ns_ = 0;
};

// The whole file as a string, for small texts such as config.json. kNotFound, kPermissionDenied,
// kDataLoss; kInvalidArgument when it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

}  // namespace banyan
