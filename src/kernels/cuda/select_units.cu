// SelectUnits: which rows and heads are due, the group scores of their units (score_units.cu), the
// exact best of them.
//
// Three kernels: one judges by the distance of queries, where the policy has one; one scores; a
// block a row and head writes the list, with a cluster's help where scores are many. A sample of
// the scores tells a bound below which none is kept. The few above it are counted in narrow
// buckets: those above the bucket of the cut-off are kept, those in it are ranked against each
// other. Where they are many, as among equal scores, the cut-off score is found by its bits. Floor:
// bytes of the statistics over memory bandwidth.
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/select_units.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kListThreads = 1024;
constexpr int32_t kListWarps = kListThreads / kWarpLanes;

// ---- Reuse by distance: a warp a row and head.

__global__ void __launch_bounds__(kWarpLanes)
    JudgeQueriesKernel(const __grid_constant__ SelectUnitsParams params) {
  BeginDependentKernel();
  const auto index = static_cast<int32_t>(blockIdx.x);
  if (index >= params.batch.counts[kDecodeRows] * params.retrieval.layout.heads) {
    return;
  }
  const SelectionPair pair(params, index);
  bool due = pair.BeyondBudget(params);
  if (due && !pair.InItsTurn(params)) {
    due = false;
    const int32_t dim = params.retrieval.layout.head_dim;
    const float distance = params.policy.reuse_distance;
    for (int32_t g = 0; g < params.group; ++g) {
      const uint16_t* q = pair.Queries(params) + g * dim;
      const uint16_t* from = pair.ListQueries(params) + g * dim;
      float moved = 0.0f;
      float length = 0.0f;
      for (int32_t d = static_cast<int32_t>(threadIdx.x); d < dim; d += kWarpLanes) {
        const float now = ToFloat(BFloat16{q[d]});
        const float step = now - ToFloat(BFloat16{from[d]});
        moved += step * step;
        length += now * now;
      }
      moved = SumOverLanes<31>(moved);
      length = SumOverLanes<31>(length);
      due = due || !(moved <= distance * distance * length);  // true for a NaN
    }
  }
  if (threadIdx.x == 0) {
    DueFlags(params)[index] = due ? 1 : 0;
  }
}

// ---- The list: a block a row and head, or a cluster of blocks of which the first writes it.

// Orders as the floats do; -0 counts as 0.
__device__ uint32_t OrderedBits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float FromOrderedBits(uint32_t bits) {
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7FFFFFFFu : ~bits);
}

constexpr int32_t kDigitBits = 11;
constexpr int32_t kDigits = 1 << kDigitBits;
constexpr int32_t kThreadSample = 8;
constexpr int32_t kSample = kListThreads * kThreadSample;
constexpr int32_t kMaxCandidates = 2048;
constexpr int32_t kMaxTies = 256;  // candidates in the bucket of the cut-off
constexpr int32_t kMaxSampledUnits = 128 * 1024;
constexpr int32_t kMostListBlocks = 8;  // of a cluster, on every device that has them

struct ListShared {
  int32_t histogram[kDigits];
  uint64_t candidates[kMaxCandidates];   // what RankOf makes of a score and its unit
  uint64_t ties[kMaxTies];               // the same
  uint32_t kept[kMaxSampledUnits / 32];  // a bit a unit
  int32_t warp_sums[kListWarps];
  int32_t warp_ties[kListWarps];
  uint32_t warp_lowest[kListWarps];
  uint32_t warp_highest[kListWarps];
  uint32_t prefix;
  int32_t places;
  int32_t bound;  // a bucket; -1: none yet
  int32_t above;  // how many lie in buckets above the bound
  int32_t count;  // of candidates
  int32_t tied;   // of ties
};

// ---- By a sample

// Buckets of equal width over a range of scores, for scores that are not below it. A score in a
// higher bucket is higher: each step of the arithmetic is monotone, and a range without a finite
// width has one bucket, or two.
struct Buckets {
  static constexpr int32_t kCount = kListThreads;

  __device__ Buckets(float lowest, float highest)
      : low(lowest), per_width(static_cast<float>(kCount) / (highest - lowest)) {}
  __device__ int32_t operator()(float score) const {
    const float place = (score - low) * per_width;  // NaN: in the first
    return static_cast<int32_t>(fminf(fmaxf(place, 0.0f), static_cast<float>(kCount - 1)));
  }

  float low;
  float per_width;
};

// The larger, the earlier kept: higher scores, and of equal ones the lower unit.
__device__ uint64_t RankOf(float score, int32_t unit) {
  return uint64_t{OrderedBits(score)} << 32 | ~static_cast<uint32_t>(unit);
}
__device__ int32_t UnitOf(uint64_t rank) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank));
}

// A block's part of the scores of units [1, end): kThreadSample of a thread at once, then as many
// again. The block is one of `blocks` that share them.
struct ListPart {
  __device__ int32_t Unit(int32_t i) const {
    return 1 + (i * blocks + block) * kListThreads + static_cast<int32_t>(threadIdx.x);
  }

  int32_t blocks;
  int32_t block;
};

// What KeepByASample takes for granted of units [1, end): everything counted is zero. Ends with a
// barrier; all threads.
__device__ void BeginSampling(int32_t end, ListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  shared.histogram[thread] = 0;
  for (int32_t i = thread; i < DivideUp(min(end, kMaxSampledUnits), 32); i += kListThreads) {
    shared.kept[i] = 0;
  }
  if (thread == 0) {
    shared.bound = -1;
    shared.count = 0;
    shared.tied = 0;
  }
  __syncthreads();
}

// Buckets from a score that at least `places` of the sample reach to the highest. sample: the
// thread's, NaN counts as none; `threads` threads have one. Where there is a group of threads for
// each place, the lowest of the groups' highest is such a score. If scores are NaN, it may be that
// fewer reach it. All threads.
__device__ Buckets SampleBuckets(const float (&sample)[kThreadSample], int32_t threads,
                                 int32_t places, ListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  const int32_t lane = thread % kWarpLanes;
  float lowest = INFINITY;
  float highest = -INFINITY;
#pragma unroll
  for (const float score : sample) {
    lowest = fminf(lowest, score);
    highest = fmaxf(highest, score);
  }
  if (places <= threads) {
    lowest = highest;
    for (int32_t lanes = 2; lanes <= kWarpLanes && places * lanes <= threads; lanes *= 2) {
      lowest = fmaxf(lowest, __shfl_xor_sync(kWholeWarp, lowest, lanes / 2));
    }
    lowest = lowest == -INFINITY ? INFINITY : lowest;  // a group without a score
  }
  const uint32_t low = __reduce_min_sync(kWholeWarp, OrderedBits(lowest));
  const uint32_t high = __reduce_max_sync(kWholeWarp, OrderedBits(highest));
  if (lane == 0) {
    shared.warp_lowest[warp] = low;
    shared.warp_highest[warp] = high;
  }
  __syncthreads();
  return {FromOrderedBits(__reduce_min_sync(kWholeWarp, shared.warp_lowest[lane])),
          FromOrderedBits(__reduce_max_sync(kWholeWarp, shared.warp_highest[lane]))};
}

// The bucket, from the highest down, that brings the histogram's sum to `places` goes to
// shared.bound, if there is one, what lies above it to shared.above; the histogram is zero again.
// Begins and ends with a barrier; all threads.
__device__ void FindBound(int32_t places, ListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  const int32_t lane = thread % kWarpLanes;
  const int32_t bucket = Buckets::kCount - 1 - thread;
  __syncthreads();
  const int32_t scored = shared.histogram[bucket];
  shared.histogram[bucket] = 0;
  int32_t inclusive = SumUpToLane(scored, lane);
  if (lane == kWarpLanes - 1) {
    shared.warp_sums[warp] = inclusive;
  }
  __syncthreads();
  inclusive += __reduce_add_sync(kWholeWarp, lane < warp ? shared.warp_sums[lane] : 0);
  if (inclusive >= places && inclusive - scored < places) {
    shared.bound = bucket;
    shared.above = inclusive - scored;
  }
  __syncthreads();
}

// Adds the scores of units part.Unit(first + i) that are in `bound` or above to the candidates of
// `to`. All lanes of a warp; NaN is none.
__device__ void AddCandidates(const float (&scores)[kThreadSample], int32_t first, ListPart part,
                              const Buckets& buckets, int32_t bound, ListShared* to) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpLanes;
  uint32_t lanes[kThreadSample];
  int32_t count = 0;
#pragma unroll
  for (int32_t i = 0; i < kThreadSample; ++i) {
    const bool reaches = scores[i] >= buckets.low && buckets(scores[i]) >= bound;
    lanes[i] = __ballot_sync(kWholeWarp, reaches);
    count += __popc(lanes[i]);
  }
  if (count == 0) {
    return;
  }
  int32_t place = lane == 0 ? atomicAdd(&to->count, count) : 0;
  place = __shfl_sync(kWholeWarp, place, 0);
#pragma unroll
  for (int32_t i = 0; i < kThreadSample; ++i) {
    const int32_t own = place + __popc(lanes[i] & ((1u << lane) - 1));
    if ((lanes[i] >> lane & 1) != 0 && own < kMaxCandidates) {
      to->candidates[own] = RankOf(scores[i], part.Unit(first + i));
    }
    place += __popc(lanes[i]);
  }
}

// Units [1, end) of shared.kept to `list`, ascending. All threads.
__device__ void ListKept(int32_t end, int32_t* list, ListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  const int32_t lane = thread % kWarpLanes;
  const int32_t words = DivideUp(end, 32);
  const int32_t run = DivideUp(words, kListThreads);  // of words, a thread
  const int32_t run_begin = min(thread * run, words);
  const int32_t run_end = min(run_begin + run, words);
  int32_t count = 0;
  for (int32_t i = run_begin; i < run_end; ++i) {
    count += __popc(shared.kept[i]);
  }
  const int32_t inclusive = SumUpToLane(count, lane);
  if (lane == kWarpLanes - 1) {
    shared.warp_sums[warp] = inclusive;
  }
  __syncthreads();
  int32_t place =
      inclusive - count + __reduce_add_sync(kWholeWarp, lane < warp ? shared.warp_sums[lane] : 0);
  for (int32_t i = run_begin; i < run_end; ++i) {
    for (uint32_t left = shared.kept[i]; left != 0; left &= left - 1) {
      list[place++] = i * 32 + __ffs(static_cast<int32_t>(left)) - 1;
    }
  }
}

// The `places` first units of [1, end), ascending, to `list`; false if too many come into question.
// A sample has no more of the highest than the whole, so what is kept is not below the bucket of
// its `places`-th. The sample is all scores up to kSample, else 32 in turn from evenly spread
// places. All threads of all the blocks that share the scores, after BeginSampling; the first block
// has the result.
__device__ bool KeepByASample(const float* scores, int32_t end, int32_t places, ListPart part,
                              int32_t* list, ListShared& shared) {
  if (places > min(end - 1, kSample) || end > kMaxSampledUnits) {
    return false;
  }
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const bool whole = end - 1 <= kSample;  // of one block then
  float own[kThreadSample];
  float sample[kThreadSample];
  constexpr int32_t kRuns = kSample / kWarpLanes;
  const int32_t step = (end - 1 - kWarpLanes) / (kRuns - 1);
#pragma unroll
  for (int32_t i = 0; i < kThreadSample; ++i) {
    const int32_t unit = part.Unit(i);
    own[i] = unit < end ? scores[unit] : NAN;
  }
#pragma unroll
  for (int32_t i = 0; i < kThreadSample; ++i) {
    const int32_t run = i * kListWarps + thread / kWarpLanes;
    sample[i] = whole ? own[i] : scores[1 + run * step + thread % kWarpLanes];
  }
  if (part.blocks > 1) {
    ArriveInCluster();
  }
  const Buckets buckets = SampleBuckets(sample, min(end - 1, kListThreads), places, shared);
#pragma unroll
  for (const float score : sample) {
    if (score >= buckets.low) {
      atomicAdd(&shared.histogram[buckets(score)], 1);
    }
  }
  FindBound(places, shared);
  ListShared* first_block = &shared;
  if (part.blocks > 1) {
    WaitForCluster();  // the first block has begun to sample
    first_block = OfBlockInCluster(first_block, 0);
  }
  if (shared.bound < 0) {
    return false;
  }
  AddCandidates(own, 0, part, buckets, shared.bound, first_block);
  for (int32_t first = kThreadSample; part.Unit(first) - thread < end; first += kThreadSample) {
#pragma unroll
    for (int32_t i = 0; i < kThreadSample; ++i) {
      const int32_t unit = part.Unit(first + i);
      own[i] = unit < end ? scores[unit] : NAN;
    }
    AddCandidates(own, first, part, buckets, shared.bound, first_block);
  }
  if (part.blocks > 1) {
    ArriveInCluster();
    WaitForCluster();
    if (part.block > 0) {
      return true;
    }
  } else {
    __syncthreads();
  }

  const int32_t count = shared.count;
  if (count > kMaxCandidates) {
    return false;
  }
  const auto bucket_of = [&](uint64_t rank) {
    return buckets(FromOrderedBits(static_cast<uint32_t>(rank >> 32)));
  };
  if (!whole) {  // among the candidates alone it shows how many lie above a bucket
    for (int32_t i = thread; i < count; i += kListThreads) {
      atomicAdd(&shared.histogram[bucket_of(shared.candidates[i])], 1);
    }
    FindBound(places, shared);
  }
  const auto keep = [&](uint64_t rank) {
    const int32_t unit = UnitOf(rank);
    atomicOr(&shared.kept[unit / 32], 1u << unit % 32);
  };
  for (int32_t i = thread; i < count; i += kListThreads) {
    const uint64_t rank = shared.candidates[i];
    const int32_t bucket = bucket_of(rank);
    if (bucket > shared.bound) {
      keep(rank);
    } else if (bucket == shared.bound) {
      const int32_t place = atomicAdd(&shared.tied, 1);
      if (place < kMaxTies) {
        shared.ties[place] = rank;
      }
    }
  }
  __syncthreads();
  const int32_t tied = shared.tied;
  if (tied > kMaxTies) {
    return false;
  }
  if (thread < tied) {
    const uint64_t rank = shared.ties[thread];
    int32_t better = 0;
    for (int32_t i = 0; i < tied; ++i) {
      better += shared.ties[i] > rank ? 1 : 0;
    }
    if (better < places - shared.above) {
      keep(rank);
    }
  }
  __syncthreads();
  ListKept(end, list, shared);
  return true;
}

// ---- By the bits of the scores

// In the histogram of a digit, from the highest bucket down: the bucket of the `places`-th largest
// key goes to the digit's place in shared.prefix, the places left in it to shared.places. All
// threads; begins and ends with a barrier.
__device__ void FindBucket(ListShared& shared, int32_t shift) {
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
__device__ void FindCutOff(const float* scores, int32_t end, int32_t places, ListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  uint32_t lowest = ~0u;
  uint32_t highest = 0;
#pragma unroll 4
  for (int32_t unit = 1 + thread; unit < end; unit += kListThreads) {
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
  for (int32_t other = 0; other < kListWarps; ++other) {
    lowest = min(lowest, shared.warp_lowest[other]);
    highest = max(highest, shared.warp_highest[other]);
  }

  int32_t bits = 32 - __clz(static_cast<int32_t>(highest - lowest));
  for (uint32_t known = 0; bits > 0;) {
    const int32_t shift = max(0, bits - kDigitBits);
    const uint32_t prefix = shared.prefix;
    __syncthreads();
    for (int32_t i = thread; i < kDigits; i += kListThreads) {
      shared.histogram[i] = 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int32_t unit = 1 + thread; unit < end; unit += kListThreads) {
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
__device__ void KeepByBits(const float* scores, int32_t end, int32_t places, int32_t* list,
                           ListShared& shared) {
  FindCutOff(scores, end, places, shared);
  const uint32_t cut = shared.prefix;
  const int32_t ties = shared.places;  // places left for units with that score, lower first
  // Each warp a run of units; what the runs before keep comes first.
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  const int32_t lane = thread % kWarpLanes;
  const int32_t run = DivideUp(DivideUp(end, kListWarps), kWarpLanes) * kWarpLanes;
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

// Registers for two blocks a multiprocessor where kernels overlap and its threads suffice: a block
// then finds room beside those that still score.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
constexpr int32_t kListBlocks = 2;
#else
constexpr int32_t kListBlocks = 1;
#endif

__global__ void __launch_bounds__(kListThreads, kListBlocks)
    WriteListsKernel(const __grid_constant__ SelectUnitsParams params) {
  __shared__ ListShared shared;
  LetNextKernelStart();
  const int32_t cluster = ClusterBlocks();
  const int32_t index = Quotient(static_cast<int32_t>(blockIdx.x), cluster);
  ListPart part{cluster, static_cast<int32_t>(blockIdx.x) - index * cluster};
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const SelectionPair pair(params, index);  // room for as many as there are blocks
  const bool exists = index < params.batch.counts[kDecodeRows] * params.retrieval.layout.heads;
  const int32_t unit_tokens = params.policy.unit_tokens;
  const int32_t newest = FirstForcedNewestUnit(pair.tokens, unit_tokens);
  if (newest - 1 <= kSample) {  // a block's work, and no other block looks at the list's count
    if (part.block > 0) {
      WaitForEarlierKernels();
      return;
    }
    part = {1, 0};
  }
  // Every thread has judged before the list's count changes; those of other blocks have then met
  // this one in KeepByASample, or it does not matter how they judge.
  const bool by_distance = params.policy.reuse_distance > 0.0f;
  bool due = exists && !by_distance && IsDue(params, pair, index);
  BeginSampling(newest, shared);
  WaitForEarlierKernels();
  if (!exists) {
    return;
  }
  if (!pair.BeyondBudget(params)) {
    if (part.block == 0 && thread == 0) {
      params.lists.counts[pair.list] = -1;
    }
    return;
  }
  if (by_distance) {
    due = IsDue(params, pair, index);
  }
  if (!due) {
    return;
  }
  const int32_t kept = params.policy.token_budget / unit_tokens;
  const int32_t units = DivideUp(pair.tokens, unit_tokens);
  const int32_t places = kept - 1 - (units - newest);  // units 1 to newest - 1 compete for them
  const float* scores = UnitScores(params, index);
  int32_t* list = params.lists.units + pair.list * params.lists.capacity;
  const bool listed = places <= 0 || KeepByASample(scores, newest, places, part, list + 1, shared);
  if (part.block > 0) {
    return;
  }
  if (!listed) {
    KeepByBits(scores, newest, places, list + 1, shared);
  }
  for (int32_t unit = newest + thread; unit < units; unit += kListThreads) {
    list[1 + places + unit - newest] = unit;
  }
  if (thread == 0) {
    list[0] = 0;
    params.lists.counts[pair.list] = kept;
    if (params.lists.made != nullptr) {
      ++params.lists.made[pair.list];
    }
  }
  if (params.lists.queries != nullptr) {
    const int32_t elements = params.group * params.retrieval.layout.head_dim;
    for (int32_t i = thread; i < elements; i += kListThreads) {
      pair.ListQueries(params)[i] = pair.Queries(params)[i];
    }
  }
  if (params.scores != nullptr) {
    float* beyond = UnitScores(params, index);
    for (int32_t unit = units + thread; unit < MaxUnits(params); unit += kListThreads) {
      beyond[unit] = -INFINITY;
    }
  }
}

}  // namespace

void SelectUnits(const SelectUnitsParams& params, cudaStream_t stream) {
  const int32_t pairs = params.batch.max_decode_rows * params.retrieval.layout.heads;
  if (pairs == 0) {
    return;
  }
  const dim3 blocks(static_cast<unsigned>(pairs));
  if (params.policy.reuse_distance > 0.0f) {
    LaunchDependent("select_units", JudgeQueriesKernel, blocks, kWarpLanes, 0, stream, params);
  }
  ScoreUnits(params, stream);
  // As many blocks share a list's scores as give a thread kThreadSample of them, where clusters
  // are.
  int32_t cluster = 1;
  while (HasDependentLaunch() && cluster < kMostListBlocks &&
         MaxUnits(params) > cluster * kSample) {
    cluster *= 2;
  }
  LaunchDependentClusters("select_units", WriteListsKernel, cluster,
                          dim3(blocks.x * static_cast<unsigned>(cluster)), kListThreads, stream,
                          params);
}

int64_t SelectUnitsWorkspace(const SelectUnitsParams& params) {
  const int64_t pairs = int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads;
  return (ScoreFloats(params) + pairs) * 4;
}

const char* SelectUnitsVariant(const SelectUnitsParams& /*params*/) { return "mma"; }

}  // namespace lserve::cuda
