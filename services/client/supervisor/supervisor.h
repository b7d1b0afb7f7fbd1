// Keeps a trunk and its local experts running: starts them, shows their load, restarts the one that
// crashes, ends them all on SIGINT or SIGTERM.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/log_line.h"
#include "services/client/connection/load_watcher.h"
#include "services/client/supervisor/child_process.h"
#include "services/client/supervisor/merged_log.h"
#include "services/client/supervisor/restart_backoff.h"
#include "services/client/terminal/progress_view.h"

namespace banyan::client {

struct SupervisorOptions {
  struct Service {
    std::string name;  // "trunk", "expert 0"
    ServiceKind kind = ServiceKind::kExpert;
    std::string address;            // where WatchLoad is asked
    std::vector<std::string> argv;  // argv[0] is the program's path
  };
  std::vector<Service> services;  // in starting order; drained in the opposite one
  std::string log_path;           // appended to
  LogFormat log_format = LogFormat::kKeyValue;
  // Starts every service with --log_format, and with --log_level as it is then: of the process
  // (logging.h), which SIGUSR1 and SIGUSR2 change here and in all services.
  bool pass_log_flags = false;
  std::vector<std::string> when_ready;  // lines said once everything is ready the first time
  absl::Duration drain_limit = absl::Seconds(20);  // for all services of one kind, before SIGKILL
};

// Owned by one thread, which must block SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGUSR1 and SIGUSR2
// before any other thread starts (BlockSupervisorSignals).
class Supervisor {
 public:
  // kNotFound: a program is missing; kFailedPrecondition: the log cannot be written.
  static absl::StatusOr<std::unique_ptr<Supervisor>> Create(SupervisorOptions options,
                                                            std::FILE* out, bool is_terminal);
  ~Supervisor();

  // Until a signal asks for the end (OK) or a service cannot be started at all: before it was ever
  // ready it ended with an exit code or crashed five times, or it reported that its load failed
  // (kFailedPrecondition, with its own last words). All services have ended when this returns.
  absl::Status Run();

 private:
  struct Unit {
    SupervisorOptions::Service service;
    std::unique_ptr<ChildProcess> child;
    std::unique_ptr<LoadWatcher> watcher;
    RestartBackoff backoff;
    absl::Time started;
    absl::Time start_at = absl::InfinitePast();  // of a service that waits for its restart
    std::string last_line;                       // of its output
    bool was_ready = false;                      // in any of its runs
    int early_crashes = 0;                       // before it was ever ready
    bool ready = false;                          // in this one
  };

  Supervisor(SupervisorOptions options, std::FILE* out, bool is_terminal,
             std::unique_ptr<MergedLog> log, int signal_fd);

  absl::Status StartUnit(Unit& unit);
  void TakeOutput(Unit& unit);
  void LogEvent(std::string_view event, LogFields fields);
  void ChangeLogLevel(int signal);
  // A unit that has ended; an error when that is the end of everything.
  absl::Status Reap(Unit& unit);
  absl::Status CheckLoad();
  std::vector<LoadRow> Rows() const;
  void Wait(absl::Duration longest);
  bool TakeSignals();  // true: asked to end
  void DrainAll();
  void Drain(const std::vector<Unit*>& units);

  const SupervisorOptions options_;
  ProgressView view_;
  const std::unique_ptr<MergedLog> log_;
  const int signal_fd_;
  std::vector<std::unique_ptr<Unit>> units_;
  bool all_ready_said_ = false;
  bool hurry_ = false;  // a second signal: SIGKILL at once
};

// Blocks the signals a supervisor reads, in this thread and in those it starts later.
void BlockSupervisorSignals();

}  // namespace banyan::client
