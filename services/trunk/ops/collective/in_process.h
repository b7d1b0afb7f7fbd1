// A group of threads that add arrays in the host's memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "services/trunk/ops/collective/collective.h"

namespace banyan::trunk {

// Two barriers an operation: at the first everyone's array is known, and each adds a share of all
// values for everyone; after the second the sums are complete. Only the first can be aborted:
// whoever passes it reaches the second without waiting, so nobody leaves while others still add
// into its array.
class InProcessGroup : public CollectiveGroup {
 public:
  static constexpr int32_t kMostMembers = 8;

  explicit InProcessGroup(int32_t size);
  ~InProcessGroup() override;
  InProcessGroup(const InProcessGroup&) = delete;
  InProcessGroup& operator=(const InProcessGroup&) = delete;

  int32_t size() const override { return static_cast<int32_t>(members_.size()); }
  Collective* rank(int32_t rank) const override;

 private:
  class Member;

  absl::Status AllReduce(int32_t rank, float* x, int64_t count);
  // Waits for all; false: the group has failed, and the barrier was `abortable`.
  bool Arrive(bool abortable) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::vector<std::unique_ptr<Member>> members_;
  mutable absl::Mutex mutex_;
  std::array<float*, kMostMembers> arrays_ ABSL_GUARDED_BY(mutex_) = {};
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  int32_t arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t barriers_ ABSL_GUARDED_BY(mutex_) = 0;  // passed by all
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan::trunk
