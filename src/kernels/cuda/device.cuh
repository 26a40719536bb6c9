// What every kernel file of the CUDA backend needs: launch checks, row counts, bf16 arithmetic,
// reductions. Device functions, and host functions that only ask the CUDA runtime.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/check.h"
#include "kernels/ops.h"

namespace lserve::cuda {

inline constexpr int32_t kWarpThreads = 32;

// After every launch: what was launched must be something that this device can run. The failure of
// an earlier kernel, or of the device, shows here too; it stays, and Stream::Synchronize tells it.
inline void CheckLaunch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  const bool impossible =
      error == cudaErrorInvalidValue || error == cudaErrorInvalidConfiguration ||
      error == cudaErrorInvalidDeviceFunction || error == cudaErrorLaunchOutOfResources ||
      error == cudaErrorNoKernelImageForDevice;
  CHECK_MSG(!impossible, "{}: {}", op, cudaGetErrorString(error));
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Programmatic dependent launch (compute capability 9.0 and later; below it both do nothing)
//
// A kernel launched by LaunchDependent may start while the kernel before it in the stream still
// runs: as soon as every block of that one has called LetNextKernelStart() or has ended. So each
// block first calls WaitForEarlierKernels(), which returns when the kernel before has ended and
// what it wrote can be read. A kernel ends after its blocks and these after their wait, so the
// kernels before that one have ended too: by induction there is nothing earlier left to read from
// or to overwrite under. That holds only if every block waits, also one that has nothing to do; or
// one of each grid, where the others write nothing.
//
// Before its wait a block may read what no kernel writes while a step runs: its parameters, weights
// (a packed weight is complete when PackLinear returns), the arrays of the batch, page tables and
// the prompts' lengths, which copies bring; a copy waits for the kernels before it and holds up
// those behind it, as does a kernel of a library or one launched by Launch(). It may read more
// where its file says why nothing earlier in the step writes that. What an earlier kernel may still
// write it may touch only to warm caches: nothing may follow from the value, nothing may be stored,
// and after the wait it is loaded past the first-level cache, which may hold what was found before.

__device__ __forceinline__ void WaitForEarlierKernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel's blocks take only what room the blocks of this kernel, which all have begun,
// leave. A kernel of little work calls this first; one that reads much calls it when its loads are
// under way, so that what the next kernel loads before its wait does not come between them.
__device__ __forceinline__ void LetNextKernelStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// How a kernel begins that has nothing to do before its wait.
__device__ __forceinline__ void BeginDependentKernel() {
  LetNextKernelStart();
  WaitForEarlierKernels();
}

// ---- Clusters of blocks (compute capability 9.0 and later; below it a block is alone)

__device__ __forceinline__ int32_t ClusterBlocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t blocks;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
  return static_cast<int32_t>(blocks);
#else
  return 1;
#endif
}

// A barrier of the cluster in two halves; all threads. What a thread wrote before it arrives, also
// to another block's shared memory, the others see after they have waited.
__device__ __forceinline__ void ArriveInCluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void WaitForCluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// What block `block` of the cluster has at `shared`. Its blocks must have begun: after a barrier.
template <typename T>
__device__ __forceinline__ T* OfBlockInCluster(T* shared, int32_t block) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(block));
  return reinterpret_cast<T*>(address);
#else
  return shared;
#endif
}

// ---- Rows

__device__ inline int32_t BatchRows(const BatchView& batch) {
  return batch.counts[kDecodeRows] + batch.counts[kPrefillRows];
}

// Rows [0, rows) that an operation works on, and the most that there can be.
__device__ inline int32_t RowsOf(const BatchView& batch, RowSet rows) {
  return rows == RowSet::kLogits ? batch.counts[kLogitRows] : BatchRows(batch);
}
inline int32_t MaxRowsOf(const BatchView& batch, RowSet rows) {
  return rows == RowSet::kLogits ? batch.max_logit_rows : batch.max_rows;
}

// ---- bf16, eight to 16 bytes

__device__ inline void Unpack8(const uint4& packed, float (&x)[8]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

__device__ inline uint32_t Pack2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return uint32_t{__bfloat16_as_ushort(pair.x)} | uint32_t{__bfloat16_as_ushort(pair.y)} << 16;
}

__device__ inline uint4 Pack8(const float (&x)[8]) {
  return {Pack2(x[0], x[1]), Pack2(x[2], x[3]), Pack2(x[4], x[5]), Pack2(x[6], x[7])};
}

// ---- Reductions, in a fixed order

__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int32_t offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
  }
  return x;
}

// The sum over the block, for every thread; kThreads is the block's size.
template <int32_t kThreads>
__device__ float BlockSum(float x) {
  constexpr int32_t kWarps = kThreads / kWarpThreads;
  __shared__ float partial[kWarps];
  x = WarpSum(x);
  if (threadIdx.x % kWarpThreads == 0) {
    partial[threadIdx.x / kWarpThreads] = x;
  }
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int32_t warp = 0; warp < kWarps; ++warp) {
    sum += partial[warp];
  }
  return sum;
}

}  // namespace lserve::cuda
