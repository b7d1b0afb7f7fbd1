#include "tests/integration/cli/served.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/base/strings.h"

namespace banyan::test {
namespace {

// Of a program that ends by itself, the demo model's 214 questions at the longest.
absl::Duration TimeLimit() {
  const char* const slowdown = std::getenv("BANYAN_TEST_SLOWDOWN");  // with sanitizers
  return absl::Minutes(5) * (slowdown == nullptr ? 1 : std::atoi(slowdown));
}

}  // namespace

std::string FileText(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

Result Banyan(const std::string& args) {
  const TempDir temp;
  // The redirections come first: ARGS may end with a here-document.
  Process process({"/bin/sh", "-c",
                   fmt::format("exec >{} 2>{} '{}' {}", temp.File("out"), temp.File("error"),
                               BinaryPath("banyan"), args)});
  const auto exit_code = process.WaitExit(TimeLimit());
  EXPECT_TRUE(exit_code.ok()) << exit_code.status();
  return {exit_code.value_or(-1), FileText(temp.File("out")), FileText(temp.File("error"))};
}

pid_t LoggedPid(const std::string& log_path, const std::string& service) {
  const std::string log = FileText(log_path);
  const std::string name = service.find(' ') == std::string::npos ? service : '"' + service + '"';
  const size_t at = log.rfind(fmt::format("started name={} pid=", name));
  return at == std::string::npos ? 0 : std::stoi(log.substr(log.find("pid=", at) + 4));
}

Served::Served(const std::vector<std::string>& more, const std::string& metrics_listen) {
  std::filesystem::create_directory(run_parent());
  std::vector<std::string> args = {
      BinaryPath("banyan"), "serve",      "--model",          kModel,
      "--listen",           address(),    "--log_file",       log_path(),
      "--run_dir",          run_parent(), "--metrics_listen", metrics_listen};
  args.insert(args.end(), more.begin(), more.end());
  process_ = std::make_unique<Process>(args);
}

std::vector<pid_t> Served::Pids() const {
  return {LoggedPid(log_path(), "trunk"), LoggedPid(log_path(), "expert 0"),
          LoggedPid(log_path(), "expert 1")};
}

std::string Served::MetricsAddress(const std::string& service) const {
  constexpr std::string_view kKey = "metrics_listening address=";
  std::istringstream lines(FileText(log_path()));
  std::string found;
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.find(kKey);
    if (line.rfind(service, 0) == 0 && at != std::string::npos)
      found = line.substr(at + kKey.size());
  }
  return found;
}

}  // namespace banyan::test
