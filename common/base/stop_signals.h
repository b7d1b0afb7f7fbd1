// SIGINT and SIGTERM as something to wait for, beside the process's own reasons to stop.
#pragma once

namespace banyan {

// Make one in main before any thread starts: threads inherit the blocked signals. SIGPIPE and
// SIGXFSZ (a write beyond a limit of file sizes, which then fails) are ignored from then on.
// Thread-safe.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // Blocks until a signal has come or Notify was called: the signal's number, or 0.
  int Wait();

  // Ends Wait, now or when it is called next.
  void Notify();

  // From now on a further signal ends the process at once: for a drain that lasts too long for
  // whoever asked for it.
  void RestoreDefault();

 private:
  int signal_fd_;
  int notify_fd_;
};

}  // namespace banyan
