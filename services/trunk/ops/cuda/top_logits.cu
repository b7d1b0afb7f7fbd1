#include "services/trunk/ops/cuda/device.cuh"
#include "services/trunk/ops/cuda/launch.cuh"
#include "services/trunk/ops/cuda/top_logits.h"

namespace banyan::trunk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = kTopTile / kThreads;
static_assert(kMaxTop == 2 * kWarp, "a warp holds a list, two keys a lane");
static_assert(kMaxTopLists * kMaxTop == kTopTile, "the lists of a row are one tile");

using Key = unsigned long long;  // 0: none

// Higher for higher logits, equal for 0 and -0; the lower id first among equals.
__device__ __forceinline__ Key KeyOf(float logit, int32_t id) {
  uint32_t bits = __float_as_uint(logit);
  if (logit == 0) bits = 0;
  bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return Key{bits} << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int32_t IdOf(Key key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}
__device__ __forceinline__ bool IsBounded(float logit) { return fabsf(logit) < kTopBound; }

__device__ __forceinline__ Key Max(Key a, Key b) { return a > b ? a : b; }
__device__ __forceinline__ Key Min(Key a, Key b) { return a > b ? b : a; }

// 64 keys of a warp: lane l holds the l-th and the (l + 32)-th.
struct List {
  Key low = 0;
  Key high = 0;
};

__device__ __forceinline__ List Load(const Key* keys, int lane) {
  return {keys[lane], keys[lane + kWarp]};
}
__device__ __forceinline__ void Store(const List& list, int lane, Key* keys) {
  keys[lane] = list.low;
  keys[lane + kWarp] = list.high;
}

// The larger of each pair of keys `stride` apart to the front where `falls`, else to the back.
__device__ __forceinline__ Key Exchange(Key mine, int lane, int stride, bool falls) {
  const Key other = __shfl_xor_sync(kAllLanes, mine, stride);
  return falls == ((lane & stride) == 0) ? Max(mine, other) : Min(mine, other);
}

// Descending, from an order that rises once and falls once, or the other way round.
__device__ __forceinline__ List SortBitonic(const List& list, int lane) {
  List out = {Max(list.low, list.high), Min(list.low, list.high)};
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) {
    out.low = Exchange(out.low, lane, stride, true);
    out.high = Exchange(out.high, lane, stride, true);
  }
  return out;
}

// Descending.
__device__ __forceinline__ List Sort(List list, int lane) {
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2) {
    const bool falls = (lane & size) == 0;  // of the lower half; of the last size all of it
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) {
      list.low = Exchange(list.low, lane, stride, falls);
      list.high = Exchange(list.high, lane, stride, size < kWarp ? falls : false);
    }
  }
  return SortBitonic(list, lane);
}

// The 64 highest of two descending lists, in an order for SortBitonic.
__device__ __forceinline__ List Highest(const List& a, const List& b, int lane) {
  const Key last = __shfl_sync(kAllLanes, b.high, kWarp - 1 - lane);
  const Key first = __shfl_sync(kAllLanes, b.low, kWarp - 1 - lane);
  return {Max(a.low, last), Max(a.high, first)};
}
__device__ __forceinline__ List Merge(const List& a, const List& b, int lane) {
  return SortBitonic(Highest(a, b, lane), lane);
}

__device__ __forceinline__ Key WarpMin(Key x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = Min(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

struct Shared {
  Key lists[kWarps * kMaxTop];  // first the highest of each thread
  // Only the 64 threads with the highest keys have any that count.
  Key left[kMaxTop * kEach];
  Key least;
  int num_left;
};

// The highest of the CTA's keys, descending, to s->lists[0, kMaxTop), 0 where there are no more. Of
// the threads' highest keys the 64th has 63 above it: what is below it drops out, and few are left
// to be sorted. All threads; ends with a barrier.
__device__ __forceinline__ void TopOfCta(const Key (&keys)[kEach], Shared* s) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  Key most = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) most = Max(most, keys[i]);
  s->lists[thread] = most;
  if (thread == 0) s->num_left = 0;
  __syncthreads();
  Key* const mine = s->lists + warp * kMaxTop;
  if (warp < 4) Store(Sort(Load(mine, lane), lane), lane, mine);
  __syncthreads();
  if (warp == 0 || warp == 2) {
    Store(Merge(Load(mine, lane), Load(mine + kMaxTop, lane), lane), lane, mine);
  }
  __syncthreads();
  if (warp == 0) {
    const List highest = Highest(Load(mine, lane), Load(mine + 2 * kMaxTop, lane), lane);
    const Key least = WarpMin(Min(highest.low, highest.high));
    if (lane == 0) s->least = least;
  }
  __syncthreads();
  const Key least = s->least;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (keys[i] != 0 && keys[i] >= least) s->left[atomicAdd(&s->num_left, 1)] = keys[i];
  }
  __syncthreads();
  const int num_left = s->num_left;
  const auto left = [&](int at) { return at < num_left ? s->left[at] : Key{0}; };
  List list;
  for (int first = warp * kMaxTop; first < num_left; first += kWarps * kMaxTop) {
    const List more = Sort({left(first + lane), left(first + kWarp + lane)}, lane);
    list = first < kWarps * kMaxTop ? more : Merge(list, more, lane);
  }
  Store(list, lane, mine);
  __syncthreads();
  const int lists = (num_left + kMaxTop - 1) / kMaxTop;
  for (int stride = 1; stride < kWarps && stride < lists; stride *= 2) {
    if (warp % (2 * stride) == 0 && warp + stride < lists) {
      list = Merge(list, Load(mine + stride * kMaxTop, lane), lane);
      Store(list, lane, mine);
    }
    __syncthreads();
  }
}

// Where the lists of a row lie, and behind all of them whether their logits are bounded.
struct Scratch {
  Key* keys;
  uint32_t* bounded;
};
__device__ __forceinline__ Scratch ScratchOf(void* scratch, int64_t row, int lists, int64_t rows) {
  auto* const keys = static_cast<Key*>(scratch);
  return {keys + row * lists * kMaxTop,
          reinterpret_cast<uint32_t*>(keys + rows * lists * kMaxTop) + row * lists};
}

// A CTA for each list of each row.
__global__ void __launch_bounds__(kThreads) ListsKernel(const TopLogitsLaunch args) {
  BeginKernel();
  __shared__ Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const float* const logits = args.logits + int64_t{blockIdx.y} * args.vocab_size;
  List highest;
  bool bounded = true;
  for (int64_t tile = blockIdx.x; tile * kTopTile < args.num_ids; tile += gridDim.x) {
    Key keys[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t id = tile * kTopTile + i * kThreads + thread;
      const bool there = id < args.num_ids;
      const float logit = there ? logits[id] : 0.0f;
      bounded = bounded && IsBounded(logit);
      keys[i] = there ? KeyOf(logit, static_cast<int32_t>(id)) : 0;
    }
    TopOfCta(keys, &shared);
    if (thread < kWarp) highest = Merge(highest, Load(shared.lists, thread), thread);
    __syncthreads();
  }
  const Scratch scratch =
      ScratchOf(args.scratch, blockIdx.y, static_cast<int>(gridDim.x), gridDim.y);
  if (thread < kWarp) Store(highest, thread, scratch.keys + blockIdx.x * kMaxTop);
  const bool all = __syncthreads_and(bounded) != 0;
  if (thread == 0) scratch.bounded[blockIdx.x] = all;
}

// A CTA for each row.
__global__ void __launch_bounds__(kThreads) RowKernel(const TopLogitsLaunch args, int lists) {
  BeginKernel();
  __shared__ Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const Scratch scratch = ScratchOf(args.scratch, row, lists, gridDim.x);
  Key keys[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    // Of a list the first keys are the highest: every thread gets some of each sort.
    const int list = thread / kMaxTop + i * (kThreads / kMaxTop);
    const int at = (thread + i * (kThreads / kMaxTop)) % kMaxTop;
    keys[i] = list < lists ? scratch.keys[list * kMaxTop + at] : 0;
  }
  TopOfCta(keys, &shared);
  if (thread < args.k) {
    const int32_t id = IdOf(shared.lists[thread]);
    args.ids[row * args.k + thread] = id;
    args.scores[row * args.k + thread] = args.logits[row * args.vocab_size + id];
  }
  const bool all = __syncthreads_and(thread >= lists || scratch.bounded[thread] != 0) != 0;
  if (thread == 0) args.bounded[row] = all ? 1 : 0;
}

}  // namespace

cudaError_t TopLogits(int32_t num_rows, const TopLogitsLaunch& args, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  const int lists = TopLists(args.num_ids);
  const auto rows = static_cast<unsigned>(num_rows);
  Launch(ListsKernel, dim3(static_cast<unsigned>(lists), rows), kThreads, 0, stream, args);
  Launch(RowKernel, rows, kThreads, 0, stream, args, lists);
  return cudaPeekAtLastError();
}

}  // namespace banyan::trunk::cuda
