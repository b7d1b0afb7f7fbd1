#include "services/client/terminal/line_reader.h"

#include <histedit.h>

#include <cstdio>
#include <iostream>
#include <utility>

#include "common/base/check.h"

namespace banyan::client {
namespace {

constexpr int kHistoryLines = 1000;

class TerminalReader final : public LineReader {
 public:
  TerminalReader(std::string prompt, std::string history_path)
      : prompt_(std::move(prompt)),
        history_path_(std::move(history_path)),
        editor_(el_init("banyan", stdin, stdout, stderr)),
        history_(history_init()) {
    CHECK(editor_ != nullptr && history_ != nullptr);
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_PROMPT, &TerminalReader::Prompt);
    el_set(editor_, EL_EDITOR, "emacs");
    // While a line is edited Ctrl-C is a key like others: it drops the line, not the program.
    el_set(editor_, EL_SETTY, "-d", "-isig", nullptr);
    el_set(editor_, EL_ADDFN, "drop-line", "Drop the line", &TerminalReader::DropLine);
    el_set(editor_, EL_BIND, "^C", "drop-line", nullptr);
    el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryLines);
    history(history_, &event, H_SETUNIQUE, 1);
    el_set(editor_, EL_HIST, history, history_);
    if (!history_path_.empty()) history(history_, &event, H_LOAD, history_path_.c_str());
  }

  ~TerminalReader() override {
    history_end(history_);
    el_end(editor_);
  }

  Outcome Read(std::string& line) override {
    interrupted_ = false;
    int count = 0;
    const char* text = el_gets(editor_, &count);
    if (interrupted_) {
      std::fputs("\n", stdout);
      return Outcome::kInterrupted;
    }
    if (text == nullptr || count <= 0) {
      std::fputs("\n", stdout);
      return Outcome::kEnd;
    }
    line.assign(text, static_cast<size_t>(count));
    if (line.back() == '\n') line.pop_back();
    if (line.find_first_not_of(" \t") != std::string::npos) {
      HistEvent event;
      history(history_, &event, H_ENTER, text);
      if (!history_path_.empty()) history(history_, &event, H_SAVE, history_path_.c_str());
    }
    return Outcome::kLine;
  }

 private:
  static TerminalReader& Self(EditLine* editor) {
    TerminalReader* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *self;
  }
  static char* Prompt(EditLine* editor) { return Self(editor).prompt_.data(); }
  static unsigned char DropLine(EditLine* editor, int) {
    Self(editor).interrupted_ = true;
    return CC_EOF;
  }

  std::string prompt_;
  const std::string history_path_;
  EditLine* const editor_;
  History* const history_;
  bool interrupted_ = false;
};

class PipeReader final : public LineReader {
 public:
  Outcome Read(std::string& line) override {
    if (!std::getline(std::cin, line)) return Outcome::kEnd;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return Outcome::kLine;
  }
};

}  // namespace

std::unique_ptr<LineReader> LineReader::ForTerminal(std::string prompt, std::string history_path) {
  return std::make_unique<TerminalReader>(std::move(prompt), std::move(history_path));
}

std::unique_ptr<LineReader> LineReader::ForPipe() { return std::make_unique<PipeReader>(); }

}  // namespace banyan::client
