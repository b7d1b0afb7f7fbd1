#include "services/trunk/ops/collective/in_process.h"

#include "common/base/check.h"

namespace banyan::trunk {

class InProcessGroup::Member final : public Collective {
 public:
  Member(InProcessGroup* group, int32_t rank, int32_t size)
      : group_(group), rank_(rank), size_(size) {}

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return size_; }
  absl::Status AllReduce(float* x, int64_t count, float* /*scratch*/, void* stream) override {
    CHECK(stream == nullptr);
    return group_->AllReduce(rank_, x, count);
  }
  void Abort(const absl::Status& why) override {
    CHECK(!why.ok());
    const absl::MutexLock lock(&group_->mutex_);
    if (group_->status_.ok()) group_->status_ = why;
  }
  absl::Status status() const override {
    const absl::MutexLock lock(&group_->mutex_);
    return group_->status_;
  }

 private:
  InProcessGroup* const group_;
  const int32_t rank_;
  const int32_t size_;
};

InProcessGroup::InProcessGroup(int32_t size) {
  CHECK(size >= 1 && size <= kMostMembers);
  for (int32_t rank = 0; rank < size; ++rank) {
    members_.push_back(std::make_unique<Member>(this, rank, size));
  }
}

InProcessGroup::~InProcessGroup() = default;

Collective* InProcessGroup::rank(int32_t rank) const {
  return members_[static_cast<size_t>(rank)].get();
}

bool InProcessGroup::Arrive(bool abortable) {
  const uint64_t passed = barriers_;
  if (++arrived_ == static_cast<int32_t>(members_.size())) {
    arrived_ = 0;
    ++barriers_;
    return true;
  }
  const auto done = [&] {
    mutex_.AssertReaderHeld();
    return barriers_ != passed || (abortable && !status_.ok());
  };
  mutex_.Await(absl::Condition(&done));
  return barriers_ != passed;
}

absl::Status InProcessGroup::AllReduce(int32_t rank, float* x, int64_t count) {
  std::array<float*, kMostMembers> arrays;
  {
    const absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
    if (arrived_ == 0) count_ = count;
    CHECK(count == count_);
    arrays_[static_cast<size_t>(rank)] = x;
    if (!Arrive(/*abortable=*/true)) return status_;
    arrays = arrays_;
  }
  const size_t size = members_.size();
  const auto share = [&](int64_t part) { return part * count / static_cast<int64_t>(size); };
  for (int64_t i = share(rank); i < share(rank + 1); ++i) {
    float sum = arrays[0][i];
    for (size_t other = 1; other < size; ++other) sum += arrays[other][i];
    for (size_t other = 0; other < size; ++other) arrays[other][i] = sum;
  }
  const absl::MutexLock lock(&mutex_);
  CHECK(Arrive(/*abortable=*/false));
  return absl::OkStatus();
}

}  // namespace banyan::trunk
