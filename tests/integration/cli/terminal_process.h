// A program under a pseudo-terminal, as a person would use it: type, read the screen, press Ctrl-C.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace banyan::test {

// Ended (SIGKILL) with the object. Owned by one thread.
class TerminalProcess {
 public:
  // `args[0]` is the path of the program; `home` becomes its HOME.
  TerminalProcess(const std::vector<std::string>& args, const std::string& home);
  ~TerminalProcess();
  TerminalProcess(const TerminalProcess&) = delete;
  TerminalProcess& operator=(const TerminalProcess&) = delete;

  pid_t pid() const { return pid_; }
  void Type(std::string_view keys) const;
  // As a window that is drawn larger or smaller; the program gets SIGWINCH.
  void Resize(int columns, int rows) const;
  // Whether typed keys are echoed and gathered to lines, as a shell expects to find it.
  bool IsInLineMode() const;
  // Until a line editor takes each key, Ctrl-C too, as it is typed. kDeadlineExceeded.
  absl::Status AwaitKeyMode(absl::Duration timeout) const;

  // Reads on until `text` appears behind everything that was awaited before. kDeadlineExceeded, or
  // kNotFound once the program has ended, both with the unread screen.
  absl::Status Await(std::string_view text, absl::Duration timeout);
  // What the last successful Await has read, up to the end of its text.
  const std::string& awaited() const { return awaited_; }
  // What has appeared since the last text that was awaited.
  const std::string& unread() const { return unread_; }

  // Exit code, or 128 + the signal that ended it.
  absl::StatusOr<int> WaitExit(absl::Duration timeout);

 private:
  // False at the end of the output or the deadline.
  bool ReadMore(absl::Time deadline);

  pid_t pid_ = -1;
  int terminal_fd_ = -1;
  bool output_ended_ = false;
  std::string unread_;
  std::string awaited_;
};

}  // namespace banyan::test
