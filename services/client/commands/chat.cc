// `banyan chat`: a conversation in the terminal, or line by line through a pipe.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/strings.h"
#include "services/client/chat/conversation.h"
#include "services/client/commands/command.h"
#include "services/client/connection/generation.h"
#include "services/client/connection/request_flags.h"
#include "services/client/connection/server_connection.h"
#include "services/client/terminal/interrupts.h"
#include "services/client/terminal/line_reader.h"

namespace banyan::client {
namespace {

struct Options {
  ServerFlags server;
  SamplingFlags sampling;
  TraceFlags trace;
  std::string system;
  std::string load;
  std::string history;
  bool no_history = false;
  bool stats = false;
};

constexpr char kHelp[] =
    "  /help          this list\n"
    "  /reset         forget the conversation, keep the system message\n"
    "  /system TEXT   set the system message and start anew (no TEXT: remove it)\n"
    "  /undo          take the last question and its answer back\n"
    "  /save FILE     write the conversation as JSON\n"
    "  /load FILE     go on with a saved conversation\n"
    "  /stats         show or hide the speed after each answer\n"
    "  /quit          leave (so does Ctrl-D)\n"
    "Ctrl-C stops an answer, or drops the line being typed. Start a line with // to say /.\n";

class Chat {
 public:
  Chat(const Options& options, inference::v1::Inference::StubInterface& stub,
       Interrupts& interrupts, bool interactive)
      : options_(options),
        stub_(stub),
        interrupts_(interrupts),
        interactive_(interactive),
        show_stats_(options.stats) {
    conversation_.set_system(options.system);
  }

  absl::Status Load(const std::string& path) {
    auto loaded = Conversation::Load(path);
    if (!loaded.ok()) return loaded.status();
    conversation_ = *std::move(loaded);
    return absl::OkStatus();
  }

  // False when the person wants to leave.
  bool Command(const std::string& line);
  // Streams the answer. A status that is not OK was not the person's doing.
  absl::Status Ask(const std::string& question);

 private:
  void Note(const std::string& text) { fmt::print(interactive_ ? stdout : stderr, "{}\n", text); }

  const Options& options_;
  inference::v1::Inference::StubInterface& stub_;
  Interrupts& interrupts_;
  const bool interactive_;
  bool show_stats_;
  Conversation conversation_;
};

bool Chat::Command(const std::string& line) {
  const size_t space = line.find(' ');
  const std::string name = line.substr(0, space);
  std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
  rest.erase(0, rest.find_first_not_of(' '));
  rest.erase(rest.find_last_not_of(' ') + 1);
  if (name == "/quit" || name == "/exit") return false;
  if (name == "/help") {
    std::fputs(kHelp, interactive_ ? stdout : stderr);
  } else if (name == "/reset") {
    conversation_.Reset();
    Note("The conversation starts anew.");
  } else if (name == "/system") {
    conversation_.set_system(rest);
    conversation_.Reset();
    Note(rest.empty() ? "No system message; the conversation starts anew."
                      : "System message set; the conversation starts anew.");
  } else if (name == "/undo") {
    Note(conversation_.Undo() ? "Taken back." : "Nothing to take back.");
  } else if (name == "/save" || name == "/load") {
    if (rest.empty()) {
      Note(name + " needs a file name");
      return true;
    }
    const absl::Status status = name == "/save" ? conversation_.Save(rest) : Load(rest);
    if (!status.ok()) {
      Note(std::string(ToStd(status.message())));
    } else {
      Note(fmt::format("{} messages {} {}", conversation_.messages().size(),
                       name == "/save" ? "saved to" : "loaded from", rest));
    }
  } else if (name == "/stats") {
    show_stats_ = !show_stats_;
    Note(show_stats_ ? "Speed is shown." : "Speed is hidden.");
  } else {
    Note(fmt::format("{}: no such command; /help lists them", Printable(name, 40)));
  }
  return true;
}

absl::Status Chat::Ask(const std::string& question) {
  inference::v1::GenerateRequest request;
  if (absl::Status status = options_.sampling.Fill(request); !status.ok()) return status;
  conversation_.FillPrompt(question, *request.mutable_chat());

  grpc::ClientContext context;
  if (options_.server.timeout_seconds > 0) {
    context.set_deadline(absl::ToChronoTime(options_.server.Deadline()));
  }
  options_.trace.Fill(context);
  Generation generation(absl::Now());
  absl::Status status;
  {
    const Interrupts::Scope scope(interrupts_, [&context] { context.TryCancel(); });
    status = RunGenerate(stub_, request, options_.server.address, context, generation,
                         [](const inference::v1::GenerateResponse& event) {
                           if (!event.has_chunk()) return;
                           std::fputs(event.chunk().text().c_str(), stdout);
                           std::fflush(stdout);
                         });
  }
  std::fputs("\n", stdout);
  std::fflush(stdout);
  const bool stopped = status.code() == absl::StatusCode::kCancelled;
  if (!status.ok() && !stopped) return status;
  // What was said before Ctrl-C stays part of the conversation.
  conversation_.AddExchange(question, generation.text);
  if (stopped) Note("[stopped]");
  if (show_stats_) Note("[" + DescribeSpeed(generation) + "]");
  if (interactive_) std::fputs("\n", stdout);
  return absl::OkStatus();
}

// ~/.local/state/banyan/chat_history, or "" where there is no home.
std::string DefaultHistoryPath() {
  std::filesystem::path folder;
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    folder = state;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    folder = std::filesystem::path(home) / ".local" / "state";
  } else {
    return "";
  }
  folder /= "banyan";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return "";
  const std::string path = (folder / "chat_history").string();
  // What people type is theirs: the file is created readable by its owner only.
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return "";
  close(fd);
  return path;
}

int Run(const Options& options) {
  inference::v1::GenerateRequest checked;
  if (absl::Status status = options.sampling.Fill(checked); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (absl::Status status = options.trace.Check(); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  if (absl::Status status = CheckServerAddress(options.server.address); !status.ok()) {
    return FailUsage(ToStd(status.message()));
  }
  const bool interactive = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
  Interrupts interrupts(/*exit_when_idle=*/!interactive);
  auto channel = Connect(options.server.address, kConnectPatience);
  if (!channel.ok()) return Fail(channel.status());
  auto stub = inference::v1::Inference::NewStub(*channel);

  Chat chat(options, *stub, interrupts, interactive);
  if (!options.load.empty()) {
    if (absl::Status status = chat.Load(options.load); !status.ok()) return Fail(status);
  }
  std::unique_ptr<LineReader> reader;
  if (interactive) {
    fmt::print("Connected to {}. /help lists commands, Ctrl-C stops an answer.\n\n",
               options.server.address);
    std::string history = options.history;
    if (history.empty() && !options.no_history) history = DefaultHistoryPath();
    reader = LineReader::ForTerminal("> ", history);
  } else {
    reader = LineReader::ForPipe();
  }

  absl::Status failed;  // of a pipe: the first failure ends it
  std::string line;
  for (;;) {
    const LineReader::Outcome outcome = reader->Read(line);
    if (outcome == LineReader::Outcome::kEnd) break;
    if (outcome == LineReader::Outcome::kInterrupted) continue;
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (line[0] == '/') {
      if (line.size() < 2 || line[1] != '/') {
        if (!chat.Command(line)) break;
        continue;
      }
      line.erase(0, 1);
    }
    if (absl::Status status = chat.Ask(line); !status.ok()) {
      if (!interactive) return Fail(status);
      Fail(status);
    }
  }
  return kExitOk;
}

}  // namespace

void AddChat(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("chat", "Talk with the model; works through pipes too");
  verb->add_option("--system", options->system, "System message");
  verb->add_option("--load", options->load, "Go on with a conversation saved by /save")
      ->type_name("FILE");
  verb->add_flag("--stats", options->stats, "Show the speed after each answer");
  verb->add_option("--history", options->history,
                   "File of typed lines (default: ~/.local/state/banyan/chat_history)")
      ->type_name("FILE");
  verb->add_flag("--no_history", options->no_history, "Keep typed lines in memory only");
  AddTraceFlags(*verb, options->trace);
  AddServerFlags(*verb, options->server, 0);
  AddSamplingFlags(*verb, options->sampling);
  verb->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace banyan::client
