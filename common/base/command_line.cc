#include "common/base/command_line.h"

#include <algorithm>

namespace banyan {

std::vector<std::string> CommandLineArguments(int argc, const char* const* argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    const bool empty_value = argument.size() > 3 && argument.compare(0, 2, "--") == 0 &&
                             argument.find('=') == argument.size() - 1;
    if (empty_value) argument.pop_back();
    arguments.push_back(argument);
    if (empty_value) arguments.emplace_back();
  }
  std::reverse(arguments.begin(), arguments.end());
  return arguments;
}

}  // namespace banyan
