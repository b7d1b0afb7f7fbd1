// How far a piece of work on bytes has come: one line that is redrawn on a terminal, a plain line
// per phase and tenth, at most one a second, elsewhere.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace banyan::client {

// Owned by one thread; writes to `out` (borrowed).
class ByteProgress {
 public:
  ByteProgress(std::FILE* out, bool is_terminal) : out_(out), is_terminal_(is_terminal) {}
  ~ByteProgress() { Erase(); }

  // `seconds`: since the phase began. A total of 0 is unknown.
  void Update(std::string_view phase, uint64_t done, uint64_t total, double seconds);
  // Removes the line of a terminal.
  void Erase();

  // "converting 47 %  12.1 of 25.7 GB  0.92 GB/s  15 s left"
  static std::string Text(std::string_view phase, uint64_t done, uint64_t total, double seconds);

 private:
  std::FILE* const out_;
  const bool is_terminal_;
  std::string phase_;
  int64_t tenth_ = -1;
  double drawn_at_ = 0;
  bool drawn_ = false;
};

}  // namespace banyan::client
