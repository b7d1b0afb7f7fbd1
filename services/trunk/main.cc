// banyan-trunk: the model behind a gRPC service, less its routed experts.
#include <memory>
#include <optional>

#include "common/base/log_level_signals.h"
#include "common/base/logging.h"
#include "common/base/stop_signals.h"
#include "common/io/mapping_fault.h"
#include "common/rpc/channel_settings.h"
#include "services/trunk/server/inference_server.h"
#include "services/trunk/trunk_options.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

int Fail(const absl::Status& status, int code) {
  banyan::LogFatalExit("banyan-trunk", status);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace banyan;
  PrepareGrpcProcess();
  NameMappingFaults();
  absl::StatusOr<std::optional<trunk::TrunkOptions>> options = trunk::ParseTrunkOptions(argc, argv);
  if (!options.ok()) return Fail(options.status(), kExitUsage);
  if (!options->has_value()) return 0;

  StopSignals stop;
  const LogLevelSignals level_signals;
  absl::StatusOr<std::unique_ptr<trunk::InferenceServer>> server =
      trunk::InferenceServer::Create(**options);
  if (!server.ok()) return Fail(server.status(), kExitFailure);
  LogInfo("listening", {{"address", (*server)->address()}});
  if (absl::Status status = (*server)->Run(stop); !status.ok()) return Fail(status, kExitFailure);
  return 0;
}
