// Names for what Hopper's warpgroups are made of: products that read shared memory (wgmma), named
// barriers. Architecture 90a only; device code.
//
// A warpgroup is four warps, the first a multiple of four; its products are 64 rows, of which warp
// w has rows 16 w to 16 w + 15. Fragments of A (registers) and the accumulators are those of
// m16n8k16 (warp.cuh), one 8-column tile behind the other.
#pragma once

#include <cstdint>

#include "kernels/cuda/bulk_copy.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

inline constexpr int32_t kWarpgroupThreads = 128;

// ---- Operands in shared memory
//
// Without swizzling an operand is made of core matrices, 8 rows of 16 contiguous bytes, 128 bytes
// in all. A descriptor has the address and two distances, in units of 16 bytes (bits 0 to 13, 16 to
// 29, 32 to 45). Of B, n columns by
// 16 in depth:
//   K-major (a row is 8 in depth of one column):  leading: from the first 8 in depth to the second,
//                                                 stride:  from 8 columns to the next 8
//   MN-major (a row is 8 columns at one depth):   leading: from the first 8 in depth to the second,
//                                                 stride:  from 8 columns to the next 8
// so that the matrix of columns 8 j on and depth 8 i on lies at address + j stride + i leading.
// (PTX words the second as rows and columns of 128-bit elements, to the same effect.)
struct MatrixDescriptor {
  uint32_t address;  // in units of 16 bytes; below it the leading distance
  uint32_t stride;

  // Every lane of the warp has the same; a reduction's result lies in a uniform register, where the
  // products want their descriptors.
  __device__ __forceinline__ MatrixDescriptor(uint32_t at, uint32_t leading_bytes,
                                              uint32_t stride_bytes)
      : address(__reduce_or_sync(kWholeWarp, (at & 0x3FFFFu) >> 4 | leading_bytes >> 4 << 16)),
        stride(stride_bytes >> 4) {}
  // Of the matrix that lies so many bytes further.
  __device__ __forceinline__ uint64_t At(uint32_t bytes) const {
    return uint64_t{stride} << 32 | (address + (bytes >> 4));
  }
};

// ---- Products

// Before the first product and after registers of one were written.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until all but the newest kGroups committed groups are done.
template <int kGroups>
__device__ __forceinline__ void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroups) : "memory");
}
// Keeps the compiler from moving what reads or writes accumulators across.
template <int kSize>
__device__ __forceinline__ void PinRegisters(float (&regs)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    asm volatile("" : "+f"(regs[i])::"memory");
  }
}

// d (+)= a b, 16 in depth, b K-major: 64 x kSize / 2 * 4 columns.
template <int kSize>
__device__ __forceinline__ void MultiplyKMajor(float (&d)[kSize], const uint32_t (&a)[4],
                                               uint64_t b, int32_t accumulate);
// The same, b MN-major.
template <int kSize>
__device__ __forceinline__ void MultiplyMnMajor(float (&d)[kSize], const uint32_t (&a)[4],
                                                uint64_t b, int32_t accumulate);
template <>
__device__ __forceinline__ void MultiplyKMajor(float (&d)[16], const uint32_t (&a)[4], uint64_t b,
                                               int32_t accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, 0;}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
template <>
__device__ __forceinline__ void MultiplyKMajor(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                               int32_t accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 0;}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
template <>
__device__ __forceinline__ void MultiplyMnMajor(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                int32_t accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
template <>
__device__ __forceinline__ void MultiplyMnMajor(float (&d)[48], const uint32_t (&a)[4], uint64_t b,
                                                int32_t accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
      "{%48, %49, %50, %51}, %52, p, 1, 1, 1;}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
template <>
__device__ __forceinline__ void MultiplyMnMajor(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                int32_t accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "
      "%60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

// ---- Prefetch

// The 128 bytes around an address, to the second-level cache alone.
__device__ __forceinline__ void PrefetchLine(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(__cvta_generic_to_global(global)));
}

// ---- Warpgroups

// The calling warpgroup gives up or takes registers, to so many a thread.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Barriers 1 to 15 among so many threads of a block; 0 is __syncthreads().
__device__ __forceinline__ void SyncNamed(int32_t id, int32_t threads) {
  asm volatile("barrier.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void ArriveNamed(int32_t id, int32_t threads) {
  asm volatile("barrier.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
// Whether `vote` is true of any of the threads.
__device__ __forceinline__ bool AnyNamed(int32_t id, int32_t threads, bool vote) {
  uint32_t any;
  asm volatile(
      "{.reg .pred mine; .reg .pred any;\n"
      "setp.ne.u32 mine, %1, 0;\n"
      "barrier.red.or.pred any, %2, %3, mine;\n"
      "selp.u32 %0, 1, 0, any;}\n"
      : "=r"(any)
      : "r"(vote ? 1u : 0u), "r"(id), "r"(threads)
      : "memory");
  return any != 0;
}

}  // namespace lserve::cuda
