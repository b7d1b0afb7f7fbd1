#include "tests/fakes/self_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace banyan {

SelfProcess::SelfProcess(const std::vector<std::string>& arguments) {
  int out[2];
  if (pipe(out) != 0) std::abort();
  std::vector<char*> argv = {const_cast<char*>("/proc/self/exe")};
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(out[1], STDOUT_FILENO);
    close(out[0]);
    close(out[1]);
    execv("/proc/self/exe", argv.data());
    _exit(127);
  }
  close(out[1]);
  std::string line;
  char c;
  while (read(out[0], &c, 1) == 1 && c != '\n') line.push_back(c);
  close(out[0]);
  const std::string prefix = "listening ";
  if (line.compare(0, prefix.size(), prefix) != 0) {
    std::fprintf(stderr, "the server process did not start: \"%s\"\n", line.c_str());
    std::exit(1);
  }
  address_ = line.substr(prefix.size());
}

SelfProcess::~SelfProcess() { Kill(); }

void SelfProcess::Signal(int signal) const {
  kill(pid_, signal);
  if (signal == SIGSTOP) waitpid(pid_, nullptr, WUNTRACED);
}

void SelfProcess::Kill() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace banyan
