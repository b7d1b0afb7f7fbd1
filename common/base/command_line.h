// What the services' command lines have in common.
#pragma once

#include <string>
#include <vector>

namespace banyan {

// The arguments behind the program's name in the order in which CLI::App::parse takes a vector:
// last first. "--name=" becomes "--name" and an empty value; CLI11 would take the next argument for
// the value.
std::vector<std::string> CommandLineArguments(int argc, const char* const* argv);

}  // namespace banyan
