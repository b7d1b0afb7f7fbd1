// Lines typed by a person (editing and history by libedit) or piped in.
#pragma once

#include <memory>
#include <string>

namespace banyan::client {

// Owned by one thread.
class LineReader {
 public:
  enum class Outcome {
    kLine,
    kInterrupted,  // Ctrl-C at the prompt: the line typed so far is dropped
    kEnd,          // end of input, Ctrl-D on an empty line
  };

  virtual ~LineReader() = default;
  virtual Outcome Read(std::string& line) = 0;

  // An editor on the terminal that is stdin and stdout, with `prompt` and the history kept in
  // `history_path` ("": in memory only).
  static std::unique_ptr<LineReader> ForTerminal(std::string prompt, std::string history_path);
  // Plain lines of stdin, no prompt.
  static std::unique_ptr<LineReader> ForPipe();
};

}  // namespace banyan::client
