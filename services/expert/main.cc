// banyan-expert: one shard of the expert pool behind a gRPC service.
#include <memory>
#include <optional>

#include "common/base/log_level_signals.h"
#include "common/base/logging.h"
#include "common/base/stop_signals.h"
#include "common/io/mapping_fault.h"
#include "common/rpc/channel_settings.h"
#include "services/expert/expert_options.h"
#include "services/expert/server/expert_server.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

int Fail(const absl::Status& status, int code) {
  banyan::LogFatalExit("banyan-expert", status);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace banyan;
  PrepareGrpcProcess();
  NameMappingFaults();
  absl::StatusOr<std::optional<expert::ExpertOptions>> options =
      expert::ParseExpertOptions(argc, argv);
  if (!options.ok()) return Fail(options.status(), kExitUsage);
  if (!options->has_value()) return 0;

  StopSignals stop;
  const LogLevelSignals level_signals;
  absl::StatusOr<std::unique_ptr<expert::ExpertServer>> server =
      expert::ExpertServer::Create(**options);
  if (!server.ok()) return Fail(server.status(), kExitFailure);
  LogInfo("listening", {{"address", (*server)->address()}});
  if (absl::Status status = (*server)->Run(stop); !status.ok()) return Fail(status, kExitFailure);
  return 0;
}
