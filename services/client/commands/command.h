// What every verb of `banyan` shares: how it is registered, how it ends and how it says what
// failed.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace banyan::client {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // the verb ran and failed
inline constexpr int kExitUsage = 2;   // the command line makes no sense

// The verb that the command line chose, with its options; returns the exit code.
using Action = std::function<int()>;

// Prints "banyan: error: MESSAGE" as one line on stderr (further lines of the message are joined)
// and returns the exit code.
int Fail(const absl::Status& status);
int FailUsage(std::string_view message);

// Each registers one verb, which sets `action` when it is chosen.
void AddServe(CLI::App& app, Action& action);
void AddChat(CLI::App& app, Action& action);
void AddGenerate(CLI::App& app, Action& action);
void AddTokenize(CLI::App& app, Action& action);
void AddStatus(CLI::App& app, Action& action);
void AddTop(CLI::App& app, Action& action);
void AddBench(CLI::App& app, Action& action);
void AddPlan(CLI::App& app, Action& action);
void AddPack(CLI::App& app, Action& action);
void AddVerify(CLI::App& app, Action& action);
void AddSynth(CLI::App& app, Action& action);
void AddCompletion(CLI::App& app, Action& action);

}  // namespace banyan::client
