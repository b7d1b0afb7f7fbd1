#include "services/trunk/engine/join_trace.h"

#include "common/base/trace_context.h"

namespace banyan::trunk {

void JoinTrace::Add(const Request& request) {
  if (!IsRequestId(request.request_id)) return;
  waiting_.push_back({request.request_id, request.traceparent});
}

std::string_view JoinTrace::Next() {
  text_.clear();
  num_named_ = 0;
  for (const Joined& joined : waiting_) {
    if (!AppendTrace({joined.request_id, joined.traceparent}, &text_)) break;
    ++num_named_;
  }
  return text_;
}

void JoinTrace::Commit() {
  if (num_named_ == 0) return;
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(num_named_));
  num_named_ = 0;
}

}  // namespace banyan::trunk
