// Loads with which the linear layers feed the tensor cores, besides those of warp.cuh. Compute
// capability 8.0 and later. Device code only.
#pragma once

#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// 16 bytes to shared memory in the thread's open group of copies, or zeros if not `valid`; `global`
// is then not read.
__device__ __forceinline__ void CopyAsync16OrZero(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Reads of what a step reads once: the second-level cache gives it up before anything else, so that
// what every layer reads again stays there, above all the kernels' code. Otherwise the weights of
// each layer drive it out, and a kernel's every line comes from memory.
class OnceReads {
 public:
  // All lanes of a warp.
  __device__ OnceReads() : zero_(__shfl_sync(kWholeWarp, threadIdx.x / 1024, 0)) {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
  }

  // The address that Copy16 takes. ptxas of CUDA 13.0 makes an illegal instruction of a copy with a
  // policy whose address it splits into a uniform register and another one. It does not see that
  // zero_ is zero, and nothing is left to split.
  __device__ __forceinline__ uint32_t Address(const void* shared) const {
    return SharedAddress(shared) ^ zero_;
  }

  // As CopyAsync16.
  __device__ __forceinline__ void Copy16(uint32_t shared, const void* global) const {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;\n" ::"r"(shared),
                 "l"(global), "l"(policy_)
                 : "memory");
  }

 private:
  uint64_t policy_;
  uint32_t zero_;
};

// 16 bytes that are read once and by nobody else.
__device__ __forceinline__ uint4 LoadOnce(const void* global) {
  uint4 x;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(global));
  return x;
}

}  // namespace lserve::cuda
