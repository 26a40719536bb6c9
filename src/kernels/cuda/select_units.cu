// SelectUnits: which rows and heads are due, the group scores of their units (score_units.cu), the
// exact best of them.
//
// Up to three kernels: one judges by the distance of queries, where the policy has one; one scores,
// and makes lists that are short (score_units.cu); of a longer list a block a row and head writes
// it, with a cluster's help where scores are many. A sample of the scores tells a bound below which
// none is kept. The few above it are counted in narrow buckets: those above the bucket of the
// cut-off are kept, those in it are ranked against each other. Where they are many, as among equal
// scores, the cut-off score is found by its bits. Floor: bytes of the statistics over memory
// bandwidth.
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/select_units.cuh"
#include "kernels/cuda/unit_lists.cuh"
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

constexpr int32_t kThreadSample = 8;
constexpr int32_t kSample = kListThreads * kThreadSample;
constexpr int32_t kMaxCandidates = 2048;
constexpr int32_t kMaxTies = 256;  // candidates in the bucket of the cut-off
constexpr int32_t kMaxSampledUnits = 128 * 1024;
constexpr int32_t kMostListBlocks = 8;  // of a cluster, on every device that has them

struct ListShared {
  BitsShared<kListThreads> bits;
  int32_t histogram[kListThreads];
  uint64_t candidates[kMaxCandidates];   // what RankOf makes of a score and its unit
  uint64_t ties[kMaxTies];               // the same
  uint32_t kept[kMaxSampledUnits / 32];  // a bit a unit
  int32_t warp_sums[kListWarps];
  uint32_t warp_lowest[kListWarps];
  uint32_t warp_highest[kListWarps];
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
      to->candidates[own] = RankOf(OrderedBits(scores[i]), part.Unit(first + i));
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
  const int32_t newest = FirstForcedNewestUnit(pair.tokens, params.policy.unit_tokens);
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
  const ListParts parts(params.policy, pair.tokens);
  const int32_t places = parts.places();
  const float* scores = UnitScores(params, index);
  int32_t* list = params.lists.units + pair.list * params.lists.capacity;
  const bool listed = places <= 0 || KeepByASample(scores, newest, places, part, list + 1, shared);
  if (part.block > 0) {
    return;
  }
  if (!listed) {
    KeepByBits(scores, newest, places, list + 1, shared.bits);
  }
  FinishList<kListThreads>(params, pair, parts, index, true);
}

}  // namespace

void SelectUnits(const SelectUnitsParams& params, std::span<int32_t> tickets, cudaStream_t stream) {
  const int64_t pairs = MaxPairs(params);
  if (pairs == 0) {
    return;
  }
  CHECK_LT(pairs, std::ssize(tickets));
  const dim3 blocks(static_cast<unsigned>(pairs));
  if (params.policy.reuse_distance > 0.0f) {
    LaunchDependent("select_units", JudgeQueriesKernel, blocks, kWarpLanes, 0, stream, params);
  }
  ScoreUnits(params, tickets.data(), stream);
  if (ListsByGroups(params)) {
    return;
  }
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
  return (MaximaOffset(params) + MaxPairs(params) * MaxGroups(params)) * 4;
}

const char* SelectUnitsVariant(const SelectUnitsParams& /*params*/) { return "mma"; }

}  // namespace lserve::cuda
