// One supervised process: started, read, ended.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan::client {

// Its stdout and stderr arrive through output_fd(). It is in a process group of its own, so that
// Ctrl-C in the terminal reaches only the supervisor, and gets SIGTERM when the supervisor dies.
// Owned by the thread that starts it, which must live as long as the child (the kernel ties the
// death signal to the thread).
class ChildProcess {
 public:
  // kNotFound when argv[0] is no program.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::vector<std::string>& argv);
  // SIGKILL and reap, when it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  int output_fd() const { return output_fd_; }  // non-blocking; -1 once it ended
  void Signal(int signal) const;

  // Whole lines that arrived since the last call, without their '\n'. An unfinished line is kept
  // until its end comes, it grows beyond 16 KiB or the output ends.
  std::vector<std::string> ReadLines();

  // Reaps it if it has ended: "exit code 1", "signal 9 (Killed)". Afterwards pid() is no more its.
  struct End {
    bool by_signal = false;
    int code = 0;  // exit code or signal
    std::string ToString() const;
  };
  std::optional<End> Poll();
  bool running() const { return running_; }

 private:
  ChildProcess(pid_t pid, int output_fd) : pid_(pid), output_fd_(output_fd) {}

  const pid_t pid_;
  int output_fd_;
  bool running_ = true;
  std::string unfinished_;
};

}  // namespace banyan::client
