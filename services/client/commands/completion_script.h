// Completion scripts for shells, derived from the options that a CLI11 app declares.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace banyan::client {

// `app` has verbs (subcommands) with options of their own. After an option the scripts offer what
// its type says: the members of a choice ("{text,json}"), directories (DIR), files (FILE), or
// nothing for other values. Verbs and options in the group "" are left out.
std::string BashCompletion(const CLI::App& app);
std::string ZshCompletion(const CLI::App& app);

}  // namespace banyan::client
