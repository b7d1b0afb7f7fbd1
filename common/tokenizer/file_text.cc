#include "common/tokenizer/file_text.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr int64_t kMaxBytes = int64_t{256} << 20;

absl::StatusOr<std::string> ReadDescriptor(int fd, const std::string& path) {
  struct stat info;
  if (fstat(fd, &info) != 0) {
    return StatusF(absl::StatusCode::kInternal, "{}: {}", path, std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) return InvalidArgumentF("{}: not a plain file", path);
  if (info.st_size > kMaxBytes) {
    return InvalidArgumentF("{}: {} bytes, expected at most {}", path, info.st_size, kMaxBytes);
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = read(fd, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return StatusF(absl::StatusCode::kInternal, "{}: {}", path, std::strerror(errno));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadFileText(const std::string& path) {
  // Not blocking: a FIFO in place of the file must not hang the caller.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const bool absent = errno == ENOENT || errno == ENOTDIR;
    return StatusF(absent ? absl::StatusCode::kNotFound : absl::StatusCode::kInternal, "{}: {}",
                   path, std::strerror(errno));
  }
  auto text = ReadDescriptor(fd, path);
  close(fd);
  return text;
}

}  // namespace banyan
