// Lists of the best units by their exact scores: the order of scores and units, and a cut-off found
// by the bits of the scores, whatever they are. Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// Orders as the floats do; -0 counts as 0.
__device__ inline uint32_t OrderedBits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float FromOrderedBits(uint32_t bits) {
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7FFFFFFFu : ~bits);
}

// The larger, the earlier kept: higher scores, and of equal ones the lower unit.
__device__ inline uint64_t RankOf(uint32_t ordered_bits, int32_t unit) {
  return uint64_t{ordered_bits} << 32 | ~static_cast<uint32_t>(unit);
}
__device__ inline int32_t UnitOf(uint64_t rank) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank));
}

inline constexpr int32_t kDigitBits = 11;
inline constexpr int32_t kDigits = 1 << kDigitBits;

template <int32_t kThreads>
struct BitsShared {
  int32_t histogram[kDigits];
  int32_t warp_sums[kThreads / kWarpLanes];
  int32_t warp_ties[kThreads / kWarpLanes];
  uint32_t warp_lowest[kThreads / kWarpLanes];
  uint32_t warp_highest[kThreads / kWarpLanes];
  uint32_t prefix;
  int32_t places;
};

// In the histogram of a digit, from the highest bucket down: the bucket of the `places`-th largest
// key goes to the digit's place in shared.prefix, the places left in it to shared.places. All
// threads; begins and ends with a barrier.
template <int32_t kThreads>
__device__ void FindBucket(BitsShared<kThreads>& shared, int32_t shift) {
  __syncthreads();
  if (threadIdx.x < kWarpLanes) {  // each lane sums a run of buckets, lane 0 the highest
    const auto lane = static_cast<int32_t>(threadIdx.x);
    constexpr int32_t kRun = kDigits / kWarpLanes;
    const int32_t top = kDigits - 1 - lane * kRun;
    int32_t sum = 0;
#pragma unroll 8
    for (int32_t i = 0; i < kRun; ++i) {
      sum += shared.histogram[top - i];
    }
    const int32_t inclusive = SumUpToLane(sum, lane);
    const int32_t places = shared.places;
    const uint32_t reached = __ballot_sync(kWholeWarp, inclusive >= places);
    if (reached != 0 && lane == __ffs(static_cast<int32_t>(reached)) - 1) {
      int32_t left = places - (inclusive - sum);
      int32_t bucket = top;
      while (shared.histogram[bucket] < left) {
        left -= shared.histogram[bucket--];
      }
      shared.prefix |= static_cast<uint32_t>(bucket) << shift;
      shared.places = left;
    }
  }
  __syncthreads();
}

// The `places`-th largest key of candidates [1, end) into shared.prefix, and how many of its equals
// are kept into shared.places. Digits are those of the distance from the lowest key, so that the
// first of them already spreads the keys.
template <int32_t kThreads>
__device__ void FindCutOff(const float* scores, int32_t end, int32_t places,
                           BitsShared<kThreads>& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  uint32_t lowest = ~0u;
  uint32_t highest = 0;
#pragma unroll 4
  for (int32_t unit = 1 + thread; unit < end; unit += kThreads) {
    const uint32_t key = OrderedBits(scores[unit]);
    lowest = min(lowest, key);
    highest = max(highest, key);
  }
#pragma unroll
  for (int32_t bit = 1; bit < kWarpLanes; bit *= 2) {
    lowest = min(lowest, __shfl_xor_sync(kWholeWarp, lowest, bit));
    highest = max(highest, __shfl_xor_sync(kWholeWarp, highest, bit));
  }
  if (thread % kWarpLanes == 0) {
    shared.warp_lowest[warp] = lowest;
    shared.warp_highest[warp] = highest;
  }
  if (thread == 0) {
    shared.prefix = 0;
    shared.places = places;
  }
  __syncthreads();
  for (int32_t other = 0; other < (kThreads / kWarpLanes); ++other) {
    lowest = min(lowest, shared.warp_lowest[other]);
    highest = max(highest, shared.warp_highest[other]);
  }

  int32_t bits = 32 - __clz(static_cast<int32_t>(highest - lowest));
  for (uint32_t known = 0; bits > 0;) {
    const int32_t shift = max(0, bits - kDigitBits);
    const uint32_t prefix = shared.prefix;
    __syncthreads();
    for (int32_t i = thread; i < kDigits; i += kThreads) {
      shared.histogram[i] = 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int32_t unit = 1 + thread; unit < end; unit += kThreads) {
      const uint32_t distance = OrderedBits(scores[unit]) - lowest;
      if ((distance & known) == prefix) {
        atomicAdd(&shared.histogram[(distance & ~known) >> shift], 1);
      }
    }
    FindBucket(shared, shift);
    known = ~0u << shift;
    bits = shift;
  }
  if (thread == 0) {
    shared.prefix += lowest;
  }
  __syncthreads();
}

// The `places` first units of [1, end), ascending, to `list`. All threads.
template <int32_t kThreads>
__device__ void KeepByBits(const float* scores, int32_t end, int32_t places, int32_t* list,
                           BitsShared<kThreads>& shared) {
  FindCutOff(scores, end, places, shared);
  const uint32_t cut = shared.prefix;
  const int32_t ties = shared.places;  // places left for units with that score, lower first
  // Each warp a run of units; what the runs before keep comes first.
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  const int32_t lane = thread % kWarpLanes;
  const int32_t run = DivideUp(DivideUp(end, (kThreads / kWarpLanes)), kWarpLanes) * kWarpLanes;
  const int32_t run_begin = min(warp * run, end);
  const int32_t run_end = min(run_begin + run, end);
  const auto above_and_tied = [&](int32_t unit, uint32_t& above, uint32_t& tied) {
    const bool competes = unit >= 1 && unit < run_end;
    const uint32_t key = competes ? OrderedBits(scores[unit]) : 0u;
    above = __ballot_sync(kWholeWarp, competes && key > cut);
    tied = __ballot_sync(kWholeWarp, competes && key == cut);
  };
  int32_t warp_above = 0;
  int32_t warp_tied = 0;
  for (int32_t first = run_begin; first < run_end; first += kWarpLanes) {
    uint32_t above = 0;
    uint32_t tied = 0;
    above_and_tied(first + lane, above, tied);
    warp_above += __popc(above);
    warp_tied += __popc(tied);
  }
  if (lane == 0) {
    shared.warp_sums[warp] = warp_above;
    shared.warp_ties[warp] = warp_tied;
  }
  __syncthreads();
  int32_t above_before = 0;
  int32_t tied_before = 0;
  for (int32_t other = 0; other < warp; ++other) {
    above_before += shared.warp_sums[other];
    tied_before += shared.warp_ties[other];
  }
  for (int32_t first = run_begin; first < run_end; first += kWarpLanes) {
    uint32_t above = 0;
    uint32_t tied = 0;
    above_and_tied(first + lane, above, tied);
    const uint32_t below = (1u << lane) - 1;
    const int32_t tie = tied_before + __popc(tied & below);
    const bool keep = (above >> lane & 1) != 0 || ((tied >> lane & 1) != 0 && tie < ties);
    const int32_t place = above_before + __popc(above & below) + min(tie, ties);
    if (keep) {
      list[place] = first + lane;
    }
    above_before += __popc(above);
    tied_before += __popc(tied);
  }
}

}  // namespace lserve::cuda
