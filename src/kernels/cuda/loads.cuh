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

// 16 bytes that are read once and by nobody else.
__device__ __forceinline__ uint4 LoadOnce(const void* global) {
  uint4 x;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(global));
  return x;
}

}  // namespace lserve::cuda
