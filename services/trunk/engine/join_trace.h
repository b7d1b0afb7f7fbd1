// Which requests the experts have still to be told of, so that their logs know them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "services/trunk/scheduler/request.h"

namespace banyan::trunk {

// Owned by the engine's thread. A request is named in one step, its first; when more join at once
// than kMaxTraceBytes hold, the others are named in the steps after it. Empty and without cost
// while nobody joins.
class JoinTrace {
 public:
  // Ids that may not stand in a log line (the server lets none through) are left out.
  void Add(const Request& request);
  // Step::trace of the next step; valid until the next call of this object.
  std::string_view Next();
  // That step has run; without this its requests are named again.
  void Commit();

 private:
  struct Joined {
    std::string request_id;
    std::string traceparent;
  };
  std::vector<Joined> waiting_;  // oldest first
  size_t num_named_ = 0;         // of them, in text_
  std::string text_;
};

}  // namespace banyan::trunk
