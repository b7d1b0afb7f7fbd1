// `banyan` in a shell, and a `banyan serve` of the bundled demo model to talk to.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/process.h"

namespace banyan::test {

inline constexpr absl::Duration kPatience = absl::Seconds(60);
inline constexpr char kModel[] = BANYAN_SOURCE_DIR "/deploy/models/demo";

std::string FileText(const std::string& path);

struct Result {
  int exit_code = 0;
  std::string out, error;
};
// Runs `banyan ARGS` in a shell, so that ARGS may say where stdin comes from.
Result Banyan(const std::string& args);

// The pid in the newest line of a key=value log that tells of a start of `service`; 0 when there is
// none.
pid_t LoggedPid(const std::string& log_path, const std::string& service);

// A trunk and two experts under a supervisor of their own, which ends with the object.
class Served {
 public:
  explicit Served(const std::vector<std::string>& more = {},
                  const std::string& metrics_listen = "");
  absl::Status AwaitReady() { return process_->WaitForLine("ready: ", kPatience).status(); }

  std::string address() const { return "unix:" + temp_.File("trunk.sock"); }
  std::string log_path() const { return temp_.File("server.log"); }
  std::string run_parent() const { return temp_.File("run"); }
  Process& process() { return *process_; }
  std::string Server() const { return " --server " + address(); }
  std::vector<pid_t> Pids() const;
  // Where `service` ("trunk", "expert 0") says that its metrics are; "" when it has not yet.
  std::string MetricsAddress(const std::string& service) const;

 private:
  const TempDir temp_;
  std::unique_ptr<Process> process_;
};

}  // namespace banyan::test
