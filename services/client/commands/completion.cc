// `banyan completion`: a script that teaches a shell the verbs and options of this very program.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "services/client/commands/command.h"
#include "services/client/commands/completion_script.h"

namespace banyan::client {

void AddCompletion(CLI::App& app, Action& action) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = app.add_subcommand(
      "completion", "Print a shell's completion script: source <(banyan completion bash)");
  verb->add_option("shell", *shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
  verb->callback([&app, shell, &action] {
    action = [&app, shell] {
      const std::string script = *shell == "zsh" ? ZshCompletion(app) : BashCompletion(app);
      std::fwrite(script.data(), 1, script.size(), stdout);
      return std::fflush(stdout) == 0 ? kExitOk : kExitFailed;
    };
  });
}

}  // namespace banyan::client
