#include "services/trunk/model/expert_answers.h"

#include "common/base/check.h"
#include "services/trunk/model/spin_wait.h"

namespace banyan::trunk {
namespace {

// How long a device may be broken before the thread that sleeps beside it asks.
constexpr absl::Duration kHealthPeriod = absl::Milliseconds(2);

}  // namespace

ExpertAnswers::ExpertAnswers(int32_t num_ranks, absl::Duration spin)
    : spin_(spin), taken_(static_cast<size_t>(num_ranks - 1)) {}

bool ExpertAnswers::AllTaken() const {
  const int64_t published = published_.load(std::memory_order_relaxed);
  for (const std::atomic<int64_t>& taken : taken_) {
    if (taken.load(std::memory_order_acquire) != published) return false;
  }
  return true;
}

void ExpertAnswers::Publish(const absl::Status& status) {
  const auto taken = [this] { return AllTaken() || failed_.load(std::memory_order_acquire); };
  AwaitWithSpin(spin_, &mutex_, taken);
  if (failed_.load(std::memory_order_acquire)) return;
  if (!status.ok()) told_failure_.store(true, std::memory_order_relaxed);
  status_ = status;
  const absl::MutexLock lock(&mutex_);  // whoever sleeps looks again when it is released
  published_.fetch_add(1, std::memory_order_release);
}

absl::Status ExpertAnswers::Take(int32_t rank, absl::FunctionRef<absl::Status()> healthy) {
  std::atomic<int64_t>& taken = taken_[static_cast<size_t>(rank - 1)];
  const int64_t next = taken.load(std::memory_order_relaxed) + 1;
  const auto there = [&] {
    return published_.load(std::memory_order_acquire) >= next ||
           failed_.load(std::memory_order_acquire);
  };
  bool found = SpinUntil(spin_, there);
  while (!found) {
    if (absl::Status status = healthy(); !status.ok()) {
      Fail(status);
      return status;
    }
    const absl::MutexLock lock(&mutex_);
    found = mutex_.AwaitWithTimeout(absl::Condition(&there), kHealthPeriod);
  }
  if (failed_.load(std::memory_order_acquire)) {
    const absl::MutexLock lock(&mutex_);
    return failure_;
  }
  absl::Status status = status_;
  const absl::MutexLock lock(&mutex_);
  taken.store(next, std::memory_order_release);
  return status;
}

void ExpertAnswers::Fail(const absl::Status& why) {
  CHECK(!why.ok());
  const absl::MutexLock lock(&mutex_);
  if (failure_.ok()) failure_ = why;
  failed_.store(true, std::memory_order_release);
}

}  // namespace banyan::trunk
