// Names for the instructions of a warp that kernels here are made of: asynchronous copies to shared
// memory, matrix fragments and their products, conversions. Compute capability 8.0 and later.
// Device code only.
//
// Fragments, as PTX defines them for lane 4r + c: A (16 x 16 bf16) holds rows r, r + 8, r, r + 8
// and columns 2c, 2c + 1 (two registers), then 8 + 2c, 9 + 2c; B (16 x 8) column r and rows 2c, 2c
// + 1, then 8 + 2c, 9 + 2c; C (16 x 8 float) rows r, r, r + 8, r + 8 and columns 2c, 2c + 1, 2c, 2c
// + 1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lserve::cuda {

inline constexpr uint32_t kWholeWarp = 0xFFFFFFFFu;
inline constexpr int32_t kWarpLanes = 32;

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A place in shared memory.
struct SharedPlace {
  __device__ __forceinline__ SharedPlace(uint32_t place) : address(place) {}
  __device__ __forceinline__ SharedPlace(const void* place) : address(SharedAddress(place)) {}

  uint32_t address;
};

// 16 bytes, past the first-level cache; both addresses are multiples of 16.
__device__ __forceinline__ void CopyAsync16(SharedPlace shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared.address), "l"(global)
               : "memory");
}

// 4 bytes, through the first-level cache.
__device__ __forceinline__ void CopyAsync4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(SharedAddress(shared)),
               "l"(global)
               : "memory");
}

// Begins to bring the line of `global`, and the translation of its address, to the second-level
// cache.
__device__ __forceinline__ void PrefetchToL2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
}

// Closes the group of the copies that this thread has begun since the last one.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until all but this thread's newest kGroups groups have arrived.
template <int kGroups>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

// Four 8x8 matrices of 2-byte elements; lane l gives the address of row l % 8 of matrix l / 8 and
// gets columns 2c, 2c + 1 of row r of each.
__device__ __forceinline__ void LoadMatrices(uint32_t (&regs)[4], SharedPlace row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(regs[0]), "=r"(regs[1]), "=r"(regs[2]), "=r"(regs[3])
               : "r"(row.address)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void LoadTransposed(uint32_t (&regs)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(regs[0]), "=r"(regs[1]), "=r"(regs[2]), "=r"(regs[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// An 8x8 matrix of 2-byte elements, transposed across the warp.
__device__ __forceinline__ uint32_t Transposed(uint32_t reg) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(reg));
  return result;
}

// c += a b, bf16.
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same, float16.
__device__ __forceinline__ void MultiplyAddHalf(float (&c)[4], uint32_t a0, uint32_t a1,
                                                uint32_t a2, uint32_t a3, uint32_t b0,
                                                uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 2^x within 2 units in the last place; 0 for minus infinity.
__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

// Two floats as a register of bf16, rounded to nearest.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float LowBf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float HighBf16(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}

// Two float16 as floats.
__device__ __forceinline__ float2 UnpackFloat16(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

__device__ __forceinline__ uint32_t PackFloat16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ __half2 AsHalf2(uint32_t pair) {
  return *reinterpret_cast<const __half2*>(&pair);
}
__device__ __forceinline__ uint32_t FromHalf2(__half2 pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// What all lanes have alike, or lane 0 alone and the others 0, in a register of the warp's own: the
// compiler sees that it is the same everywhere.
__device__ __forceinline__ uint32_t Uniform(uint32_t x) { return __reduce_or_sync(kWholeWarp, x); }
__device__ __forceinline__ int32_t Uniform(int32_t x) {
  return static_cast<int32_t>(Uniform(static_cast<uint32_t>(x)));
}
// An address in global memory.
template <typename T>
__device__ __forceinline__ T* Uniform(T* x) {
  const auto bits = __cvta_generic_to_global(x);
  return static_cast<T*>(
      __cvta_global_to_generic(uint64_t{Uniform(static_cast<uint32_t>(bits >> 32))} << 32 |
                               Uniform(static_cast<uint32_t>(bits))));
}

// x, computed here once: the compiler does not see what it is made of.
__device__ __forceinline__ int32_t Kept(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
// An address in global memory.
template <typename T>
__device__ __forceinline__ T* Kept(T* x) {
  auto bits = __cvta_generic_to_global(x);
  asm volatile("" : "+l"(bits));
  return static_cast<T*>(__cvta_global_to_generic(bits));
}

// The sum over the lanes up to this one.
template <typename T>
__device__ __forceinline__ T SumUpToLane(T x, int32_t lane) {
#pragma unroll
  for (int32_t distance = 1; distance < kWarpLanes; distance *= 2) {
    const T before = __shfl_up_sync(kWholeWarp, x, distance);
    x += lane >= distance ? before : 0;
  }
  return x;
}

// The maximum or sum over the lanes that differ in the bits of kMask.
template <uint32_t kMask>
__device__ __forceinline__ float MaxOverLanes(float x) {
#pragma unroll
  for (uint32_t bit = 1; bit < kWarpLanes; bit *= 2) {
    if ((kMask & bit) != 0) {
      x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, static_cast<int>(bit)));
    }
  }
  return x;
}
template <uint32_t kMask>
__device__ __forceinline__ float SumOverLanes(float x) {
#pragma unroll
  for (uint32_t bit = 1; bit < kWarpLanes; bit *= 2) {
    if ((kMask & bit) != 0) {
      x += __shfl_xor_sync(kWholeWarp, x, static_cast<int>(bit));
    }
  }
  return x;
}

// Lane 4r + c: over all r, over all c.
inline constexpr uint32_t kOverRows = 4 | 8 | 16;
inline constexpr uint32_t kOverColumns = 1 | 2;

// Makes float16 below 1 of bf16 queries that lie as B's columns, query r in lanes 4r to 4r + 3; the
// power of two that gives the lane's query back. for_tiles(visit) calls visit(t) for the tiles of q
// that there are.
template <int32_t kTiles, typename ForTiles>
__device__ __forceinline__ float ScaleToFloat16(uint32_t (&q)[kTiles][2], ForTiles for_tiles) {
  float most = 0.0f;
  for_tiles([&](int32_t t) {
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      most = fmaxf(most, fmaxf(fabsf(LowBf16(q[t][half])), fabsf(HighBf16(q[t][half]))));
    }
  });
  most = MaxOverLanes<kOverColumns>(most);
  // most < 2^(exponent - 126)
  const uint32_t exponent = min(__float_as_uint(most) >> 23, 252u);
  const float down = __uint_as_float((253u - exponent) << 23);
  for_tiles([&](int32_t t) {
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      q[t][half] = PackFloat16(LowBf16(q[t][half]) * down, HighBf16(q[t][half]) * down);
    }
  });
  return __uint_as_float((exponent + 1) << 23);
}

}  // namespace lserve::cuda
