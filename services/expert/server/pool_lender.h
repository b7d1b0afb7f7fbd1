// Lends the file with the pool to processes on the same machine: the work of the LendPool RPC.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/file_descriptor.h"
#include "common/rpc/memory_inbox.h"

namespace banyan::expert {

// Thread-safe.
class PoolLender {
 public:
  // The file with the pool, opened for reading only, or why there is none; called by any thread.
  using OpenFileFn = std::function<absl::StatusOr<FileDescriptor>()>;

  // `inbox`: where borrowers send their sockets, borrowed. Null: there is none.
  explicit PoolLender(MemoryInbox* inbox) : inbox_(inbox) {}

  // Lend gives from now on; before it is kUnavailable.
  void SetPool(OpenFileFn open_file) ABSL_LOCKS_EXCLUDED(mutex_);

  // Sends the file through the socket that came under that name; its size in bytes. Never waits.
  // kInvalidArgument: not a name; kUnavailable: not loaded; kNotFound: nothing came under it;
  // kFailedPrecondition: what came is no connected Unix socket, this host has no inbox, or the pool
  // is in no file.
  absl::StatusOr<uint64_t> Lend(std::string_view socket_name) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  MemoryInbox* const inbox_;
  absl::Mutex mutex_;
  OpenFileFn open_file_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan::expert
