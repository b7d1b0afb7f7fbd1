// Real processes under test: start a binary, read what it logs, wait for it, measure it, end it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace banyan::test {

// The path of a program of this build: BANYAN_BIN_DIR/name.
std::string BinaryPath(std::string_view name);

// A child process; its standard output and error are read line by line. Ended (SIGKILL) with the
// object, and by the kernel when the test dies. Thread-safe.
class Process {
 public:
  // `args[0]` is the path of the program. CHECK-fails when it cannot be started.
  explicit Process(const std::vector<std::string>& args);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;

  // Exit code, or 128 + the signal that ended it. kDeadlineExceeded with the log so far.
  absl::StatusOr<int> WaitExit(absl::Duration timeout);

  // The first whole line that contains `text`, waiting for it; kDeadlineExceeded, or kNotFound once
  // the output has ended without it, both with the log so far.
  absl::StatusOr<std::string> WaitForLine(std::string_view text, absl::Duration timeout);

  // The address that the service logged in its line of the event `listening`, in either format.
  absl::StatusOr<std::string> ListeningAddress(absl::Duration timeout);

  std::string Log() const;
  int64_t ResidentBytes() const;

 private:
  void ReadOutput();
  absl::StatusOr<std::string> WaitForAnyLine(const std::vector<std::string>& texts,
                                             absl::Duration timeout);
  bool HasLineOrEnded(const std::vector<std::string>& texts, std::string* line) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  pid_t pid_ = -1;
  int output_fd_ = -1;
  std::thread reader_;
  mutable absl::Mutex mutex_;
  std::string log_ ABSL_GUARDED_BY(mutex_);
  bool output_ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool exited_ ABSL_GUARDED_BY(mutex_) = false;
  int exit_code_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace banyan::test
