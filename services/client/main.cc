// The `banyan` tool: one verb per file in commands/. It speaks only the public protos.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "common/base/version.h"
#include "common/rpc/channel_settings.h"
#include "services/client/commands/command.h"

int main(int argc, char** argv) {
  using namespace banyan::client;
  banyan::PrepareGrpcProcess();

  const std::string version = "banyan " + std::string(banyan::Version());
  Action action;
  CLI::App app{"Serve Qwen3-Next-class models from a trunk and expert services, and talk to them."};
  app.name("banyan");
  app.require_subcommand(1);
  AddServe(app, action);
  AddChat(app, action);
  AddGenerate(app, action);
  AddTokenize(app, action);
  AddStatus(app, action);
  AddTop(app, action);
  AddBench(app, action);
  AddPlan(app, action);
  AddPack(app, action);
  AddVerify(app, action);
  AddSynth(app, action);
  AddCompletion(app, action);
  app.set_version_flag("--version", version, "Print the version and exit");
  for (CLI::App* verb : app.get_subcommands({})) {
    verb->set_version_flag("--version", version, "Print the version and exit");
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::string verb;
    for (const CLI::App* chosen : app.get_subcommands()) verb = chosen->get_name() + " ";
    return FailUsage(std::string(error.what()) + " (see banyan " + verb + "--help)");
  }
  return action();
}
