#include "services/client/commands/command.h"

#include <cstdio>

#include "common/base/strings.h"

namespace banyan::client {
namespace {

void PrintError(std::string_view message) {
  std::string line = "banyan: error: ";
  for (char c : message) line.push_back(c == '\n' || c == '\r' ? ' ' : c);
  line.push_back('\n');
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace

int Fail(const absl::Status& status) {
  PrintError(ToStd(status.message()));
  return kExitFailed;
}

int FailUsage(std::string_view message) {
  PrintError(message);
  return kExitUsage;
}

}  // namespace banyan::client
