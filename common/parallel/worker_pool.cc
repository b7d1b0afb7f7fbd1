#include "common/parallel/worker_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "common/parallel/topology.h"

namespace banyan {
namespace {

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Polls `ready` for up to `limit`: first at full speed, then giving the CPU away between looks, so
// that on a crowded machine the thread with the work gets it. True when `ready` held.
template <typename Predicate>
bool SpinUntil(std::chrono::nanoseconds limit, const Predicate& ready) {
  using SteadyClock = std::chrono::steady_clock;
  constexpr int kLooksPerClockRead = 32;
  constexpr auto kFullSpeed = std::chrono::microseconds(20);
  if (ready()) return true;
  if (limit.count() <= 0) return false;
  const auto start = SteadyClock::now();
  while (true) {
    for (int i = 0; i < kLooksPerClockRead; ++i) {
      CpuRelax();
      if (ready()) return true;
    }
    const auto elapsed = SteadyClock::now() - start;
    if (elapsed >= limit) return false;
    if (elapsed >= kFullSpeed) sched_yield();
  }
}

}  // namespace

// One word says it all: the loop's number in the upper half, tiles not yet taken in the lower. A
// thread owns a tile once it has lowered the word by one with compare-and-swap; until it reports
// the tile done the loop cannot end, so the loop's description stays valid for it. Nobody reads the
// description without owning a tile: a late worker never holds up the caller.
class WorkerPool::Impl {
 public:
  explicit Impl(const Options& options)
      : num_threads_(options.num_threads), spin_(absl::ToChronoNanoseconds(options.spin)) {
    CHECK(options.num_threads >= 1);
    const std::vector<int> cpus = options.pin ? AffinityCpus() : std::vector<int>();
    threads_.reserve(static_cast<size_t>(num_threads_ - 1));
    for (int i = 1; i < num_threads_; ++i) {
      threads_.emplace_back([this, i] { Work(i); });
      if (!cpus.empty()) Pin(threads_.back(), cpus[static_cast<size_t>(i) % cpus.size()]);
    }
  }

  ~Impl() {
    stop_.store(true, std::memory_order_seq_cst);
    {
      absl::MutexLock lock(&mu_);
      wake_workers_.SignalAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  int num_threads() const { return num_threads_; }

  void Rest() { rest_.store(true, std::memory_order_relaxed); }

  void Run(int64_t num_tiles, absl::FunctionRef<void(int64_t, int)> body) {
    if (num_tiles <= 0) return;
    if (num_threads_ == 1 || num_tiles == 1) {
      for (int64_t tile = 0; tile < num_tiles; ++tile) body(tile, 0);
      return;
    }
    CHECK(num_tiles <= kTilesMask);
    body_ = &body;
    num_tiles_ = num_tiles;
    rest_.store(false, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ++loop_;
    word_.store((static_cast<uint64_t>(loop_) << kTilesBits) | static_cast<uint64_t>(num_tiles),
                std::memory_order_seq_cst);
    if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
      absl::MutexLock lock(&mu_);
      wake_workers_.SignalAll();
    }
    while (RunOneTile(0)) {
    }
    const auto finished = [&] { return done_.load(std::memory_order_acquire) == num_tiles; };
    if (SpinUntil(spin_, finished)) return;
    // Somebody who holds a tile has lost its CPU.
    absl::MutexLock lock(&mu_);
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    while (done_.load(std::memory_order_seq_cst) != num_tiles) wake_caller_.Wait(&mu_);
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }

 private:
  static constexpr int kTilesBits = 32;
  static constexpr int64_t kTilesMask = (int64_t{1} << kTilesBits) - 1;

  static void Pin(std::thread& thread, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    // A CPU taken away meanwhile leaves the thread unpinned, which is only slower.
    (void)pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
  }

  static int64_t TilesLeft(uint64_t word) { return static_cast<int64_t>(word) & kTilesMask; }

  bool HasTiles() const { return TilesLeft(word_.load(std::memory_order_seq_cst)) > 0; }

  // False when no tile is left.
  bool RunOneTile(int thread) {
    uint64_t word = word_.load(std::memory_order_acquire);
    do {
      if (TilesLeft(word) == 0) return false;
    } while (!word_.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
    const int64_t num_tiles = num_tiles_;
    (*body_)(num_tiles - TilesLeft(word), thread);
    if (done_.fetch_add(1, std::memory_order_seq_cst) + 1 == num_tiles &&
        caller_sleeps_.load(std::memory_order_seq_cst)) {
      absl::MutexLock lock(&mu_);
      wake_caller_.Signal();
    }
    return true;
  }

  void Work(int thread) {
    const auto awake = [this] {
      return HasTiles() || stop_.load(std::memory_order_relaxed) ||
             rest_.load(std::memory_order_relaxed);
    };
    while (!stop_.load(std::memory_order_relaxed)) {
      while (RunOneTile(thread)) {
      }
      if (SpinUntil(spin_, awake) && !rest_.load(std::memory_order_relaxed)) continue;
      absl::MutexLock lock(&mu_);
      num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
      while (!HasTiles() && !stop_.load(std::memory_order_seq_cst)) wake_workers_.Wait(&mu_);
      num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  const int num_threads_;
  const std::chrono::nanoseconds spin_;

  // Of the running loop; written by the caller before word_ is published.
  const absl::FunctionRef<void(int64_t, int)>* body_ = nullptr;
  int64_t num_tiles_ = 0;
  uint32_t loop_ = 0;

  alignas(64) std::atomic<uint64_t> word_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> num_sleeping_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  std::atomic<bool> rest_{false};

  absl::Mutex mu_;
  absl::CondVar wake_workers_;  // waits on word_ and stop_
  absl::CondVar wake_caller_;   // waits on done_
  std::vector<std::thread> threads_;
};

WorkerPool::WorkerPool(const Options& options) : impl_(std::make_unique<Impl>(options)) {}
WorkerPool::~WorkerPool() = default;

int WorkerPool::num_threads() const { return impl_->num_threads(); }

void WorkerPool::Rest() { impl_->Rest(); }

void WorkerPool::ParallelFor(int64_t num_tiles, absl::FunctionRef<void(int64_t, int)> body) {
  impl_->Run(num_tiles, body);
}

}  // namespace banyan
