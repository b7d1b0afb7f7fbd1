#include "services/client/terminal/byte_progress.h"

#include "common/base/strings.h"
#include "services/client/terminal/table.h"

namespace banyan::client {
namespace {

constexpr double kSecondsBetweenDraws = 0.1;
constexpr double kSecondsBetweenLines = 1;
// A rate that was measured over less says nothing about the rest.
constexpr double kMinSecondsForRate = 0.2;

}  // namespace

std::string ByteProgress::Text(std::string_view phase, uint64_t done, uint64_t total,
                               double seconds) {
  if (total == 0) return std::string(phase);
  std::string text =
      fmt::format("{} {:3} %  {} of {}", phase, done * 100 / total,
                  HumanBytes(static_cast<double>(done)), HumanBytes(static_cast<double>(total)));
  if (seconds < kMinSecondsForRate || done == 0) return text;
  const double rate = static_cast<double>(done) / seconds;
  text += fmt::format("  {}/s", HumanBytes(rate));
  if (done < total) {
    text += fmt::format("  {} left", HumanSeconds(static_cast<double>(total - done) / rate));
  }
  return text;
}

void ByteProgress::Update(std::string_view phase, uint64_t done, uint64_t total, double seconds) {
  const bool new_phase = phase != phase_;
  const int64_t tenth = total == 0 ? 0 : static_cast<int64_t>(done * 10 / total);
  if (is_terminal_) {
    if (!new_phase && done < total && seconds - drawn_at_ < kSecondsBetweenDraws) return;
    std::fprintf(out_, "\r\033[K%s", Text(phase, done, total, seconds).c_str());
    drawn_ = true;
    drawn_at_ = seconds;
  } else {
    if (!new_phase && (tenth == tenth_ || seconds - drawn_at_ < kSecondsBetweenLines)) return;
    drawn_at_ = seconds;
    std::fprintf(out_, "%s\n", Text(phase, done, total, seconds).c_str());
  }
  std::fflush(out_);
  phase_ = phase;
  tenth_ = tenth;
}

void ByteProgress::Erase() {
  if (!drawn_) return;
  std::fprintf(out_, "\r\033[K");
  std::fflush(out_);
  drawn_ = false;
}

}  // namespace banyan::client
