// Runs the tests, or as a child of them one expert host.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "common/base/logging.h"
#include "common/rpc/channel_settings.h"
#include "tests/unit/services/trunk/experts/scalar_executor.h"

int main(int argc, char** argv) {
  banyan::PrepareGrpcProcess();
  if (argc == 5 && std::string(argv[1]) == "--expert_child") {
    if (!banyan::SetLogLevel("error").ok()) return 1;
    banyan::testing_experts::RunExpertChild(argv[2], std::atoi(argv[3]), std::atoi(argv[4]));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
