#include "services/client/terminal/progress_view.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

constexpr int kDefaultColumns = 80;

int TerminalColumns(std::FILE* out) {
  winsize size{};
  if (ioctl(fileno(out), TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return kDefaultColumns;
  return size.ws_col;
}

double Fraction(const LoadRow& row) {
  if (row.bytes_total == 0) return 0;
  return std::min(1.0, static_cast<double>(row.bytes_done) / static_cast<double>(row.bytes_total));
}

// What is known of speed and cost.
std::vector<std::string> Figures(const LoadRow& row, std::string_view of_memory) {
  std::vector<std::string> out;
  if (row.bytes_per_second > 0) out.push_back(HumanBytes(row.bytes_per_second) + "/s");
  if (row.remaining_seconds > 0) out.push_back(HumanSeconds(row.remaining_seconds) + " left");
  if (row.cpus > 0) out.push_back(fmt::format("{:.1f} CPUs", row.cpus));
  if (row.resident_bytes > 0) {
    out.push_back(
        fmt::format("{}{}", HumanBytes(static_cast<double>(row.resident_bytes)), of_memory));
  }
  return out;
}

bool WorthALine(const LoadRow& before, const LoadRow& now) {
  return before.phase != now.phase || before.detail != now.detail ||
         static_cast<int>(Fraction(before) * 10) != static_cast<int>(Fraction(now) * 10);
}

}  // namespace

std::string ProgressView::BarLine(const LoadRow& row, int columns) {
  std::string line = fmt::format("{:<10} {:<9}", row.name, row.phase);
  if (row.bytes_total > 0 && row.phase != "ready" && row.phase != "failed") {
    constexpr int kCells = 24;
    const int full = static_cast<int>(Fraction(row) * kCells);
    line += fmt::format(" [{:#<{}}{:-<{}}] {:>3.0f} %  {} of {}", "", full, "", kCells - full,
                        Fraction(row) * 100, HumanBytes(static_cast<double>(row.bytes_done)),
                        HumanBytes(static_cast<double>(row.bytes_total)));
    for (const std::string& figure : Figures(row, "")) line += "  " + figure;
  } else if (row.phase == "ready" && row.bytes_total > 0) {
    line += fmt::format(" {} in {}", HumanBytes(static_cast<double>(row.bytes_total)),
                        HumanSeconds(row.elapsed_seconds));
  }
  if (!row.detail.empty()) line += "  " + row.detail;
  if (static_cast<int>(line.size()) > columns - 1) line.resize(static_cast<size_t>(columns - 1));
  return line;
}

std::string ProgressView::PlainLine(const LoadRow& row) {
  std::string line = fmt::format("{}: {}", row.name, row.phase);
  if (row.bytes_total > 0) {
    if (row.phase == "ready") {
      line += fmt::format(" ({} in {})", HumanBytes(static_cast<double>(row.bytes_total)),
                          HumanSeconds(row.elapsed_seconds));
    } else {
      line += fmt::format(" {:.0f} % ({} of {}", Fraction(row) * 100,
                          HumanBytes(static_cast<double>(row.bytes_done)),
                          HumanBytes(static_cast<double>(row.bytes_total)));
      for (const std::string& figure : Figures(row, " of memory")) line += ", " + figure;
      line += ")";
    }
  }
  if (!row.detail.empty()) line += ": " + row.detail;
  return line;
}

void ProgressView::EraseBars() {
  if (drawn_lines_ > 0) fmt::print(out_, "\x1b[{}A\x1b[J", drawn_lines_);
  drawn_lines_ = 0;
}

void ProgressView::Update(const std::vector<LoadRow>& rows) {
  if (is_terminal_) {
    const int columns = TerminalColumns(out_);
    EraseBars();
    for (const LoadRow& row : rows) fmt::print(out_, "{}\n", BarLine(row, columns));
    drawn_lines_ = static_cast<int>(rows.size());
  } else {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (i >= shown_.size() || WorthALine(shown_[i], rows[i])) {
        fmt::print(out_, "{}\n", PlainLine(rows[i]));
      }
    }
  }
  if (is_terminal_ || shown_.size() != rows.size()) {
    shown_ = rows;
  } else {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (WorthALine(shown_[i], rows[i])) shown_[i] = rows[i];
    }
  }
  std::fflush(out_);
}

void ProgressView::Say(const std::string& line) {
  if (is_terminal_) {
    EraseBars();
    fmt::print(out_, "{}\n", line);
    if (!shown_.empty()) {
      for (const LoadRow& row : shown_) fmt::print(out_, "{}\n", BarLine(row, kDefaultColumns));
      drawn_lines_ = static_cast<int>(shown_.size());
    }
  } else {
    fmt::print(out_, "{}\n", line);
  }
  std::fflush(out_);
}

}  // namespace banyan::client
