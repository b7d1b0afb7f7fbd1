// --log_level of a running process: SIGUSR1 makes the log one step more verbose, SIGUSR2 one less.
#pragma once

#include <thread>

#include "common/base/log_line.h"

namespace banyan {

// Sets the level one step on, not beyond debug or error. `signal` is SIGUSR1 or SIGUSR2.
struct LogLevelStep {
  LogLevel from;
  LogLevel to;
  const char* signal_name;
};
LogLevelStep StepLogLevel(int signal);

// While one exists, a thread of its own takes both signals and writes a line about each, whatever
// the level. Make it in main before any other thread starts: threads inherit the blocked signals.
// At most one at a time.
class LogLevelSignals {
 public:
  LogLevelSignals();
  ~LogLevelSignals();
  LogLevelSignals(const LogLevelSignals&) = delete;
  LogLevelSignals& operator=(const LogLevelSignals&) = delete;

 private:
  void Watch() const;

  int signal_fd_;
  int stop_fd_;
  std::thread thread_;
};

}  // namespace banyan
