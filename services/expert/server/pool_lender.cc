#include "services/expert/server/pool_lender.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/file_passing.h"

namespace banyan::expert {

void PoolLender::SetPool(OpenFileFn open_file) {
  absl::MutexLock lock(&mutex_);
  open_file_ = std::move(open_file);
}

absl::StatusOr<uint64_t> PoolLender::Lend(std::string_view socket_name) {
  MemoryName name;
  if (socket_name.size() != name.size()) {
    return InvalidArgumentF("socket_name of {} bytes, expected {}", socket_name.size(),
                            name.size());
  }
  std::memcpy(name.data(), socket_name.data(), name.size());
  // Out of the inbox, whatever becomes of it.
  const FileDescriptor socket = inbox_ == nullptr ? FileDescriptor() : inbox_->Take(name);
  OpenFileFn open_file;
  {
    absl::MutexLock lock(&mutex_);
    open_file = open_file_;
  }
  if (open_file == nullptr) {
    return absl::UnavailableError("this host is loading; WatchLoad tells how far it is");
  }
  if (inbox_ == nullptr) {
    return FailedPreconditionF(
        "this host has no memory inbox: start it with --listen unix:/path, in a folder where it "
        "can make a second socket");
  }
  if (!socket.valid()) {
    return StatusF(absl::StatusCode::kNotFound,
                   "no socket of that name is in the memory inbox: expected one that was sent "
                   "before this call, and at most {} others after it",
                   MemoryInbox::kMostKept - 1);
  }
  ASSIGN_OR_RETURN(const FileDescriptor file, open_file());
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return absl::ErrnoToStatus(errno, "the file of the pool");
  RETURN_IF_ERROR(SendFile(socket.get(), file.get()));
  LogInfo("pool_lent", {{"bytes", static_cast<uint64_t>(info.st_size)}});
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace banyan::expert
