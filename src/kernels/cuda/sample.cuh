// What the sampler (sample.cu) is made of: the order of candidates, sums of weights, the cluster of
// blocks that shares a logit row, and each block's share. Device code only.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

inline constexpr int32_t kSampleThreads = 512;
inline constexpr int32_t kSampleWarps = kSampleThreads / kWarpLanes;
inline constexpr int32_t kSampleBlocks = 8;  // most of a cluster, on every device that has them
inline constexpr int32_t kIdBits = 22;
inline constexpr int32_t kKeyBits = 32 + kIdBits;
inline constexpr uint64_t kLastKey = (uint64_t{1} << kKeyBits) - 1;
static_assert(kSampleBlocks <= kSampleWarps && kSampleWarps <= kWarpLanes);

// ---- Keys

// Ascends in sampling order. Both zeros are one logit.
__device__ inline uint64_t KeyOf(float logit, int32_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  const uint32_t ascending = bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
  return uint64_t{~ascending} << kIdBits | static_cast<uint32_t>(id);
}

__device__ inline int32_t IdOf(uint64_t key) {
  return static_cast<int32_t>(key & ((uint64_t{1} << kIdBits) - 1));
}

// NaN of the last key.
__device__ inline float LogitOf(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> kIdBits);
  return __uint_as_float(ascending ^ ((ascending >> 31) != 0 ? 0x80000000u : 0xFFFFFFFFu));
}

__device__ inline uint64_t Minimum(uint64_t a, uint64_t b) { return a < b ? a : b; }
__device__ inline uint64_t Maximum(uint64_t a, uint64_t b) { return a < b ? b : a; }

__device__ inline uint64_t WarpMinimum(uint64_t key) {
  const auto above = static_cast<uint32_t>(key >> kIdBits);
  const uint32_t least = __reduce_min_sync(kWholeWarp, above);
  const auto id = static_cast<uint32_t>(IdOf(key));
  return uint64_t{least} << kIdBits |
         __reduce_min_sync(kWholeWarp, above == least ? id : 0xFFFFFFFFu);
}
__device__ inline uint64_t WarpMaximum(uint64_t key) {
  return kLastKey - WarpMinimum(kLastKey - key);
}

// ---- Sums of weights

__device__ inline uint64_t WeightOf(uint2 words) { return uint64_t{words.y} << 32 | words.x; }

// Two additions of a word each: shared memory has none of two words.
__device__ inline void AddWeight(uint2& sum, uint64_t weight) {
  const auto low = static_cast<uint32_t>(weight);
  const bool carry = atomicAdd(&sum.x, low) > ~low;
  if (const uint32_t high = static_cast<uint32_t>(weight >> 32) + (carry ? 1 : 0); high != 0) {
    atomicAdd(&sum.y, high);
  }
}

__device__ inline uint64_t WarpSum(uint64_t x) {
#pragma unroll
  for (int32_t distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, distance);
  }
  return x;
}

// ---- The cluster

struct Cluster {
  // All threads of all its blocks.
  __device__ void Barrier() const {
    if (blocks > 1) {
      __syncwarp();
      ArriveInCluster();
      WaitForCluster();
    } else {
      __syncthreads();
    }
  }

  int32_t blocks;
  int32_t block;  // this one's place
};

// kWidth elements that are loaded at once.
template <typename T, int32_t kWidth>
struct alignas(sizeof(T) * kWidth) Elements {
  T x[kWidth];
};

// A block's share of a row: blocks and their threads take kWidth logits in turn. All rows begin at
// a multiple of kWidth.
template <int32_t kWidth>
struct Share {
  __device__ int32_t FirstId() const {
    return (cluster.block * kSampleThreads + static_cast<int32_t>(threadIdx.x)) * kWidth;
  }
  // From an id of the thread to its next.
  __device__ int32_t Step() const { return cluster.blocks * kSampleThreads * kWidth; }

  template <typename T>
  __device__ Elements<T, kWidth> Load(const T* data, int32_t id) const {
    return id < count ? *reinterpret_cast<const Elements<T, kWidth>*>(data + id)
                      : Elements<T, kWidth>{};
  }

  // Calls visit(id, logit) for the thread's logits, ids ascending. The loads run ahead, and what is
  // visited does not stand there once for each of them: most of this code runs once a step, and
  // instructions come from memory too.
  template <typename Visit>
  __device__ __forceinline__ void ForLogits(Visit visit) const {
    constexpr int32_t kAhead = kWidth == 1 ? 8 : 3;
    Elements<float, kWidth> ahead[kAhead];
    const int32_t step = Step();
    int32_t id = FirstId();
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      ahead[i] = Load(logits, id + i * step);
    }
#pragma unroll 1
    for (; id < count; id += step) {
      const Elements<float, kWidth> now = ahead[0];
#pragma unroll
      for (int32_t i = 1; i < kAhead; ++i) {
        ahead[i - 1] = ahead[i];
      }
      ahead[kAhead - 1] = Load(logits, id + kAhead * step);
#pragma unroll
      for (int32_t k = 0; k < kWidth; ++k) {
        visit(id + k, now.x[k]);
      }
    }
  }

  Cluster cluster;
  float* logits;
  int32_t count;  // of the row
};

}  // namespace lserve::cuda
