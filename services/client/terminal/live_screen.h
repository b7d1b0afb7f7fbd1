// A full terminal screen that is drawn again and again, and what a person does meanwhile.
#pragma once

#include <termios.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace banyan::client {

// While one exists the terminal (stdin and stdout) shows the alternate screen without a cursor and
// hands keys over unechoed; the destructor gives it back as it was. Owned by one thread.
class LiveScreen {
 public:
  // Blocks SIGINT, SIGTERM, SIGHUP and SIGWINCH, which Wait reads, in this thread and in those it
  // starts later: to be called before gRPC starts any.
  static void BlockSignals();

  LiveScreen();
  ~LiveScreen();
  LiveScreen(const LiveScreen&) = delete;
  LiveScreen& operator=(const LiveScreen&) = delete;

  int columns() const { return columns_; }

  // Lines of single-width characters; what does not fit on the screen is left out.
  void Draw(const std::vector<std::string>& lines);

  enum class Event {
    kTime,    // the deadline
    kResize,  // columns() has changed: draw again
    kQuit,    // q, Ctrl-C, a signal to end, or the terminal has gone
  };
  Event Wait(absl::Time deadline);

 private:
  void MeasureSize();

  termios before_;
  int signal_fd_;
  int columns_ = 80;
  int rows_ = 24;
};

}  // namespace banyan::client
