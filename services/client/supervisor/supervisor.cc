#include "services/client/supervisor/supervisor.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/time/clock.h"
#include "common/base/check.h"
#include "common/base/log_level_signals.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "services/client/connection/load_row.h"

namespace banyan::client {
namespace {

constexpr absl::Duration kRefresh = absl::Milliseconds(100);
constexpr absl::Duration kIdle = absl::Seconds(1);  // nothing loads: only children and signals

constexpr int kMaxEarlyCrashes = 5;

sigset_t SupervisorSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGUSR1, SIGUSR2}) sigaddset(&set, signal);
  return set;
}

}  // namespace

void BlockSupervisorSignals() {
  const sigset_t set = SupervisorSignals();
  CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
}

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Create(SupervisorOptions options,
                                                               std::FILE* out, bool is_terminal) {
  for (const auto& service : options.services) {
    if (access(service.argv[0].c_str(), X_OK) != 0) {
      return StatusF(absl::StatusCode::kNotFound, "{} is missing: expected beside banyan",
                     service.argv[0]);
    }
  }
  ASSIGN_OR_RETURN(auto log, MergedLog::Open(options.log_path, options.log_format));
  const sigset_t set = SupervisorSignals();
  const int signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  CHECK(signal_fd >= 0);
  return absl::WrapUnique(
      new Supervisor(std::move(options), out, is_terminal, std::move(log), signal_fd));
}

Supervisor::Supervisor(SupervisorOptions options, std::FILE* out, bool is_terminal,
                       std::unique_ptr<MergedLog> log, int signal_fd)
    : options_(std::move(options)),
      view_(out, is_terminal),
      log_(std::move(log)),
      signal_fd_(signal_fd) {}

Supervisor::~Supervisor() {
  units_.clear();
  close(signal_fd_);
}

void Supervisor::LogEvent(std::string_view event, LogFields fields) {
  if (LogEnabled(LogLevel::kInfo)) log_->Event(event, fields);
}

absl::Status Supervisor::StartUnit(Unit& unit) {
  std::vector<std::string> argv = unit.service.argv;
  if (options_.pass_log_flags) {
    argv.insert(argv.end(), {"--log_format", std::string(LogFormatName(options_.log_format)),
                             "--log_level", std::string(LogLevelName(GetLogLevel()))});
  }
  ASSIGN_OR_RETURN(unit.child, ChildProcess::Start(argv));
  unit.started = absl::Now();
  unit.start_at = absl::InfinitePast();
  unit.ready = false;
  unit.last_line.clear();
  LogEvent("started", {{"name", unit.service.name}, {"pid", unit.child->pid()}});
  return absl::OkStatus();
}

void Supervisor::TakeOutput(Unit& unit) {
  if (unit.child == nullptr) return;
  for (std::string& line : unit.child->ReadLines()) {
    log_->Forward(unit.service.name, line);
    if (!line.empty()) unit.last_line = std::move(line);
  }
}

absl::Status Supervisor::Reap(Unit& unit) {
  const std::optional<ChildProcess::End> end = unit.child->Poll();
  if (!end) return absl::OkStatus();
  TakeOutput(unit);
  unit.child.reset();
  unit.watcher->Reset();
  unit.ready = false;
  const absl::Duration worked = absl::Now() - unit.started;
  LogEvent("ended", {{"name", unit.service.name},
                     {"by", end->ToString()},
                     {"after_seconds", absl::ToDoubleSeconds(worked)}});
  if (!unit.was_ready && (!end->by_signal || ++unit.early_crashes >= kMaxEarlyCrashes)) {
    return FailedPreconditionF(
        "{} did not start ({}): {} (log: {})", unit.service.name, end->ToString(),
        unit.last_line.empty() ? "it said nothing" : MergedLog::Reason(unit.last_line),
        options_.log_path);
  }
  const absl::Duration pause = unit.backoff.Next(worked);
  unit.start_at = absl::Now() + pause;
  view_.Say(fmt::format("{} ended by {}: starting it again in {}", unit.service.name,
                        end->ToString(), absl::FormatDuration(pause)));
  return absl::OkStatus();
}

std::vector<LoadRow> Supervisor::Rows() const {
  std::vector<LoadRow> rows;
  for (const auto& unit : units_) {
    const LoadWatcher::State state = unit->watcher->Get();
    LoadRow row = LoadRowOf(unit->service.name, state.progress);
    if (unit->child == nullptr || !state.connected) {
      row = LoadRow();
      row.name = unit->service.name;
      row.phase = unit->child == nullptr ? "down" : "starting";
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

absl::Status Supervisor::CheckLoad() {
  bool changed = false;
  for (auto& unit : units_) {
    if (unit->child == nullptr || unit->ready) continue;
    const LoadWatcher::State state = unit->watcher->Get();
    if (!state.connected) continue;
    if (state.progress.phase() == common::v1::LoadProgress::FAILED) {
      return FailedPreconditionF("{} could not load: {} (log: {})", unit->service.name,
                                 state.progress.detail(), options_.log_path);
    }
    if (state.progress.phase() != common::v1::LoadProgress::READY) continue;
    unit->ready = true;
    changed = true;
    if (unit->was_ready) view_.Say(fmt::format("{} is ready again", unit->service.name));
    unit->was_ready = true;
  }
  const bool all = std::all_of(units_.begin(), units_.end(), [](auto& u) { return u->ready; });
  if (changed && all && !all_ready_said_) {
    all_ready_said_ = true;
    view_.Update(Rows());
    view_.Release();
    for (const std::string& line : options_.when_ready) view_.Say(line);
  }
  return absl::OkStatus();
}

void Supervisor::Wait(absl::Duration longest) {
  std::vector<pollfd> fds = {{signal_fd_, POLLIN, 0}};
  for (const auto& unit : units_) {
    if (unit->child != nullptr && unit->child->output_fd() >= 0) {
      fds.push_back({unit->child->output_fd(), POLLIN, 0});
    }
  }
  poll(fds.data(), fds.size(), static_cast<int>(absl::ToInt64Milliseconds(longest)) + 1);
}

bool Supervisor::TakeSignals() {
  bool asked = false;
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGUSR1 || info.ssi_signo == SIGUSR2) {
      ChangeLogLevel(static_cast<int>(info.ssi_signo));
    } else if (info.ssi_signo != SIGCHLD) {
      asked = true;
    }
  }
  return asked;
}

void Supervisor::ChangeLogLevel(int signal) {
  const LogLevelStep step = StepLogLevel(signal);
  log_->Event("log_level", {{"from", LogLevelName(step.from)},
                            {"to", LogLevelName(step.to)},
                            {"signal", step.signal_name}});
  for (auto& unit : units_) {
    if (unit->child != nullptr) unit->child->Signal(signal);
  }
}

absl::Status Supervisor::Run() {
  LogEvent("begin", {{"pid", getpid()}});
  for (const auto& service : options_.services) {
    auto unit = std::make_unique<Unit>();
    unit->service = service;
    unit->watcher = std::make_unique<LoadWatcher>(service.address, service.kind);
    units_.push_back(std::move(unit));
  }
  absl::Status status;
  bool asked_to_end = false;
  while (status.ok() && !asked_to_end) {
    absl::Duration wait = kIdle;
    for (auto& unit : units_) {
      if (unit->child == nullptr && unit->start_at <= absl::Now()) {
        status = StartUnit(*unit);
        if (!status.ok()) break;
      }
      if (unit->child == nullptr) {
        wait = std::min(wait, std::max(unit->start_at - absl::Now(), absl::ZeroDuration()));
      }
      if (!unit->ready) wait = std::min(wait, kRefresh);
    }
    if (!status.ok()) break;
    if (!all_ready_said_) view_.Update(Rows());
    Wait(wait);
    asked_to_end = TakeSignals();
    for (auto& unit : units_) {
      TakeOutput(*unit);
      if (unit->child != nullptr && status.ok()) status = Reap(*unit);
    }
    if (!status.ok() || asked_to_end) break;
    status = CheckLoad();
  }
  if (asked_to_end) view_.Say("ending: answers under way finish first (again: at once)");
  DrainAll();
  LogEvent("end", {});
  return status;
}

void Supervisor::DrainAll() {
  // The trunk first: while its last answers run, it needs the experts.
  std::vector<Unit*> trunks;
  std::vector<Unit*> experts;
  for (auto& unit : units_) {
    (unit->service.kind == ServiceKind::kTrunk ? trunks : experts).push_back(unit.get());
  }
  Drain(trunks);
  Drain(experts);
}

void Supervisor::Drain(const std::vector<Unit*>& units) {
  const absl::Time limit = absl::Now() + options_.drain_limit;
  for (Unit* unit : units) {
    if (unit->child != nullptr) unit->child->Signal(SIGTERM);
  }
  bool killed = false;
  for (;;) {
    bool running = false;
    for (auto& unit : units_) {  // all: nobody's log may block it
      TakeOutput(*unit);
      if (unit->child == nullptr) continue;
      if (const auto end = unit->child->Poll()) {
        TakeOutput(*unit);
        LogEvent("ended", {{"name", unit->service.name}, {"by", end->ToString()}});
        unit->child.reset();
      } else if (std::find(units.begin(), units.end(), unit.get()) != units.end()) {
        running = true;
      }
    }
    if (!running) return;
    if (!killed && (hurry_ || absl::Now() >= limit)) {
      killed = true;
      for (Unit* unit : units) {
        if (unit->child == nullptr) continue;
        view_.Say(fmt::format("{} did not end in time: killed", unit->service.name));
        unit->child->Signal(SIGKILL);
      }
    }
    Wait(kRefresh);
    if (TakeSignals()) hurry_ = true;
  }
}

}  // namespace banyan::client
