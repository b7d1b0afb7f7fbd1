// What a kernel of compute capability 9.0 needs where some of its warps copy and others compute:
// barriers in shared memory that both wait for, copies by the copy engine that end at one,
// registers that change hands, which is for 9.0a alone. Shared addresses are SharedAddress's.
// Device code of compute capability 9.0 on.
#pragma once

#include <cstdint>

namespace banyan::trunk::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Eight bytes in shared memory. `count` arrivals, and the bytes that were announced, complete a
// phase, and the next begins.
__device__ __forceinline__ void BarrierInit(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// By the thread that did so, before the CTA or its cluster meets and others use them.
__device__ __forceinline__ void BarriersInitialized() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// The same where the copy engine is one of the others.
__device__ __forceinline__ void BarriersInitializedForCopies() {
  BarriersInitialized();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and announces bytes of CopyBulk.
__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Arrives once what this thread has copied by cp.async is there.
__device__ __forceinline__ void BarrierArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Until the phase of that parity is complete; that of a new barrier is 0, the one before it 1.
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// One thread's: bytes, in multiples of 16 and so aligned, that `barrier` is told of.
__device__ __forceinline__ void CopyBulk(uint32_t shared, const void* global, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// By all threads of four warps: the registers that each has from here on, fewer or more than
// before.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace banyan::trunk::cuda
