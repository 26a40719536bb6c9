// Bulk copies to shared memory, and the barriers there that tell when they have arrived. Compute
// capability 9.0 and later; device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// Whether the lane is the one, always the same, that acts for the warp. All lanes of it. What it
// then does with places that are the same for the whole warp takes one instruction; of another
// lane that is chosen the compiler does not know that it is alone.
__device__ __forceinline__ bool ElectLane() {
  uint32_t elected;
  asm volatile(
      "{.reg .pred chosen;\n"
      "elect.sync _|chosen, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, chosen;}\n"
      : "=r"(elected));
  return elected != 0;
}

// ---- Barriers in shared memory

__device__ __forceinline__ void InitBarrier(SharedPlace barrier, int32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier.address), "r"(arrivals)
               : "memory");
}
// Ends a barrier on which nobody waits any more; its place may hold another.
__device__ __forceinline__ void EndBarrier(SharedPlace barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];\n" ::"r"(barrier.address) : "memory");
}
// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void Arrive(SharedPlace barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier.address) : "memory");
}
// Arrives; the phase also waits for so many bytes of bulk copies.
__device__ __forceinline__ void ArriveExpecting(SharedPlace barrier, int32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier.address),
               "r"(bytes)
               : "memory");
}
// Until the phase of this parity is over; of a new barrier the phase before the first (1) is.
__device__ __forceinline__ void WaitPhase(SharedPlace barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}\n" ::"r"(barrier.address),
      "r"(parity)
      : "memory");
}

// ---- Copies

// Contiguous bytes, a multiple of 16, both addresses too.
__device__ __forceinline__ void CopyBulk(SharedPlace shared, const void* global, int32_t bytes,
                                         SharedPlace barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared.address),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(barrier.address)
      : "memory");
}
// This thread's stores to shared memory before it, for products and bulk copies after it.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace lserve::cuda
