// Launching the kernels of the attention operations. Host functions; thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace lserve::cuda {

constexpr int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

// The dynamic shared memory of a kernel. Device code.
__device__ inline std::byte* SharedMemory() {
  extern __shared__ __align__(128) std::byte lserve_shared_memory[];
  return lserve_shared_memory;
}

inline int32_t Multiprocessors() {
  static const int32_t count = [] {
    int device = 0;
    int value = 0;
    CHECK(cudaGetDevice(&device) == cudaSuccess);
    CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device) == cudaSuccess);
    return value;
  }();
  return count;
}

// Blocks of a kernel that walks a device-side count of items, of which there are at most `most`.
inline int32_t PersistentBlocks(int64_t most, int32_t blocks_per_multiprocessor) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(most, 1, int64_t{Multiprocessors()} * blocks_per_multiprocessor));
}

template <typename... Args>
void Launch(const char* op, void (*kernel)(Args...), dim3 grid, int32_t threads,
            int64_t shared_bytes, cudaStream_t stream, const std::type_identity_t<Args>&... args) {
  // Without leave a block gets 48 KiB, of which the kernel's static arrays take their part.
  if (shared_bytes > 32 * 1024) {
    CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)) == cudaSuccess);
  }
  kernel<<<grid, static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(
      args...);
  CheckLaunch(op);
}

}  // namespace lserve::cuda
