#include "services/client/supervisor/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/memory/memory.h"
#include "common/base/strings.h"

namespace banyan::client {
namespace {

namespace fs = std::filesystem;

constexpr char kLockName[] = "lock";

std::string NamePrefix() { return fmt::format("banyan-{}-", getuid()); }

// What a supervisor and its children put there: plain files and sockets, no folders.
void RemoveWithFiles(const fs::path& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    std::error_code ignored;
    if (!entry.is_directory(ignored)) fs::remove(entry.path(), ignored);
  }
  fs::remove(directory, error);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Create(const std::string& parent) {
  RemoveAbandoned(parent);
  std::string path = (fs::path(parent) / (NamePrefix() + "XXXXXX")).string();
  if (mkdtemp(path.data()) == nullptr) {
    return StatusF(absl::StatusCode::kFailedPrecondition, "cannot make a directory in {}: {}",
                   parent, strerror(errno));
  }
  const std::string lock = path + "/" + kLockName;
  const int fd = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    RemoveWithFiles(path);
    return StatusF(absl::StatusCode::kFailedPrecondition, "cannot lock {}: {}", lock,
                   strerror(error));
  }
  return absl::WrapUnique(new RunDirectory(std::move(path), fd));
}

RunDirectory::~RunDirectory() {
  RemoveWithFiles(path_);
  close(lock_fd_);
}

std::string RunDirectory::File(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

absl::Status RunDirectory::Write(std::string_view name, std::string_view content) const {
  const std::string path = File(name);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  if (!out) {
    return StatusF(absl::StatusCode::kFailedPrecondition, "cannot write {}: {}", path,
                   strerror(errno));
  }
  return absl::OkStatus();
}

int RunDirectory::RemoveAbandoned(const std::string& parent) {
  int removed = 0;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
    if (entry.path().filename().string().rfind(NamePrefix(), 0) != 0) continue;
    struct stat info {};
    if (lstat(entry.path().c_str(), &info) != 0 || !S_ISDIR(info.st_mode) ||
        info.st_uid != getuid()) {
      continue;
    }
    // Without a lock file it is either being made right now or no supervisor's: left alone.
    const int fd = open((entry.path() / kLockName).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
      RemoveWithFiles(entry.path());
      ++removed;
    }
    close(fd);
  }
  return removed;
}

}  // namespace banyan::client
