// A child process of a test or benchmark: this program again, with other arguments.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace banyan {

// Starts it and waits for its line "listening ADDRESS". Killed at the end.
class SelfProcess {
 public:
  explicit SelfProcess(const std::vector<std::string>& arguments);
  ~SelfProcess();
  SelfProcess(const SelfProcess&) = delete;
  SelfProcess& operator=(const SelfProcess&) = delete;
  const std::string& address() const { return address_; }
  // SIGSTOP: has stopped when this returns.
  void Signal(int signal) const;
  // SIGKILL, and waits for its end. Idempotent.
  void Kill();

 private:
  pid_t pid_ = -1;
  std::string address_;
};

}  // namespace banyan
