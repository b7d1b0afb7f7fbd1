// Word that the experts have answered, from the device that asked them to those that share the
// model with it. All are threads of one process: the rows stay in the host memory where rank 0 has
// them, and each device reads them over its own link.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace banyan::trunk {

// Thread-safe. Rank 0 publishes as many answers as each other rank takes, in the same order.
class ExpertAnswers {
 public:
  // `spin`: how long a rank polls for an answer before it sleeps; nothing where threads share CPUs.
  ExpertAnswers(int32_t num_ranks, absl::Duration spin);

  // Rank 0: the rows are there, or why they are not. Waits until all ranks have taken the word
  // before. That rows may be written again says the next AllReduce, which no device reaches before
  // it has read these.
  void Publish(const absl::Status& status);

  // Other ranks: waits for the next word and returns it. While it is not there `healthy` is asked
  // now and then; an error of it is a failure of this rank. Errors: what rank 0 published, or
  // Fail's.
  absl::Status Take(int32_t rank, absl::FunctionRef<absl::Status()> healthy);

  // Whether what was published last in this step was a failure, which all ranks then know.
  // BeginStep: before the ranks begin, nobody waits.
  void BeginStep() { told_failure_.store(false, std::memory_order_relaxed); }
  bool told_failure() const { return told_failure_.load(std::memory_order_relaxed); }

  // A rank has failed alone, and no answer can follow: everybody's calls end with `why`, from now
  // on. The first one counts.
  void Fail(const absl::Status& why);

 private:
  bool AllTaken() const;

  const absl::Duration spin_;
  absl::Mutex mutex_;
  std::atomic<int64_t> published_{0};
  std::vector<std::atomic<int64_t>> taken_;  // of ranks 1, 2, ...
  std::atomic<bool> failed_{false};
  std::atomic<bool> told_failure_{false};
  // Written by rank 0 while nobody reads: after all have taken, before published_ is raised.
  absl::Status status_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace banyan::trunk
