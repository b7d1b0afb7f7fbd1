// How long to wait before a service that ended by itself is started again.
#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace banyan::client {

// 250 ms, doubled for every further end up to 15 s; a minute of work sets it back.
// Thread-compatible.
class RestartBackoff {
 public:
  static constexpr absl::Duration kFirst = absl::Milliseconds(250);
  static constexpr absl::Duration kLongest = absl::Seconds(15);
  static constexpr absl::Duration kStable = absl::Minutes(1);

  // The pause after a run of length `worked`.
  absl::Duration Next(absl::Duration worked) {
    if (worked >= kStable) next_ = kFirst;
    const absl::Duration pause = next_;
    next_ = std::min(next_ * 2, kLongest);
    return pause;
  }

 private:
  absl::Duration next_ = kFirst;
};

}  // namespace banyan::client
