// Short lists, made by blocks of the kernel that scores as soon as a row's and head's scores are
// there. Device code.
//
// Of few units the scores, of many the maxima of groups of them, are values that 128 threads share.
// A bound that as many threads' highest values reach as there are places is one below which no
// score is kept: of each warp the value that a fourth of the places reach, of these the lowest. The
// values that reach it are hardly more than there are places, and of groups theirs are all the
// scores that are read. Candidates are ranked against each other. Where they are many, as among
// equal scores, the cut-off is found by bits.
//
// A few hundred numbers are no work. What counts is how often a step waits for the one before, and
// that the code is short: it comes from afar, so loops stay rolled and all loads go through shared
// memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/page_scorer.cuh"
#include "kernels/cuda/select_units.cuh"
#include "kernels/cuda/unit_lists.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/work_plan.cuh"

namespace lserve::cuda {

inline constexpr int32_t kMaxGroupPlaces = 64;  // half as many as threads, so that bounds are high
inline constexpr int32_t kFewUnits = 2048;      // whose scores themselves are the values
inline constexpr int32_t kValuesAtOnce = 8192;  // in shared memory
inline constexpr int32_t kMaxCandidateGroups = 256;
inline constexpr int32_t kMaxGroupCandidates = 512;

struct GroupListShared {
  union {
    float values[kValuesAtOnce];
    BitsShared<kScoreThreads> bits;
  };
  uint64_t candidates[kMaxGroupCandidates];  // RankOf
  int32_t groups[kMaxCandidateGroups];       // whose value reaches the bound
  float highest[kScoreThreads];              // of the threads' values
  int32_t kept[kMaxGroupPlaces];             // units, the best first
  float bounds[kScoreThreads / kWarpLanes];  // of warps
  int32_t groups_taken;
  int32_t candidates_taken;
};

// Values that stand for units [1, end): value i for the 2^shift units from i << shift on.
struct GroupValues {
  const float* from;
  int32_t size;
  int32_t shift;
};

// from_of(i) for i below `count` to `to`; past the barrier at its end. All threads of the block.
template <typename FromOf>
__device__ void CopyValues(float* to, int32_t count, FromOf from_of) {
  __syncthreads();  // what lay there was read
#pragma unroll 1
  for (auto i = static_cast<int32_t>(threadIdx.x); i < count; i += kScoreThreads) {
    CopyAsync4(to + i, from_of(i));
  }
  CommitCopies();
  WaitCopies<0>();
  __syncthreads();
}

// How many of `count` numbers in shared memory are above, or with kReach not below, `than`; the
// same for each of the 4 threads that ask together.
template <bool kReach, typename T>
__device__ int32_t CountAbove(const T* numbers, int32_t count, T than) {
  int32_t above = 0;
#pragma unroll 2
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % 4; i < count; i += 4) {
    above += (kReach ? numbers[i] >= than : numbers[i] > than) ? 1 : 0;
  }
  above += __shfl_xor_sync(kWholeWarp, above, 1);
  return above + __shfl_xor_sync(kWholeWarp, above, 2);
}

// The `places` first units of [1, end), ascending, to `list`; false if too many come into question.
// All threads of the block.
__device__ inline bool KeepByGroups(const float* scores, const GroupValues& values, int32_t end,
                                    int32_t places, int32_t* list, GroupListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  constexpr int32_t kWarps = kScoreThreads / kWarpLanes;
  const auto load = [&](int32_t first) {
    const int32_t count = min(values.size - first, kValuesAtOnce);
    CopyValues(shared.values, count, [&](int32_t i) { return values.from + first + i; });
    if (values.shift == 0 && first == 0 && thread == 0) {
      shared.values[0] = -INFINITY;  // unit 0 does not compete; a group's maximum leaves it out
    }
    return count;
  };
  if (thread == 0) {
    shared.groups_taken = 0;
    shared.candidates_taken = 0;
  }
  float highest = -INFINITY;
  for (int32_t first = 0; first < values.size; first += kValuesAtOnce) {
    const int32_t count = load(first);
#pragma unroll 2
    for (int32_t i = thread; i < count; i += kScoreThreads) {
      highest = fmaxf(highest, shared.values[i]);
    }
  }
  shared.highest[thread] = highest;
  __syncwarp();
  int32_t reaching = 0;
#pragma unroll 2
  for (int32_t i = 0; i < kWarpLanes; i += 4) {
    const float4 others = *reinterpret_cast<const float4*>(shared.highest + warp * kWarpLanes + i);
    reaching += (others.x >= highest ? 1 : 0) + (others.y >= highest ? 1 : 0) +
                (others.z >= highest ? 1 : 0) + (others.w >= highest ? 1 : 0);
  }
  const uint32_t of_warp = __reduce_max_sync(
      kWholeWarp, reaching >= DivideUp(places, kWarps) ? OrderedBits(highest) : 0u);
  if (thread % kWarpLanes == 0) {
    shared.bounds[warp] = FromOrderedBits(of_warp);
  }
  __syncthreads();
  const float bound =
      fminf(fminf(shared.bounds[0], shared.bounds[1]), fminf(shared.bounds[2], shared.bounds[3]));

  // What reaches the bound: units themselves, or groups and what of their units does.
  const auto add_candidate = [&](float score, int32_t unit) {
    const int32_t place = atomicAdd(&shared.candidates_taken, 1);
    if (place < kMaxGroupCandidates) {
      shared.candidates[place] = RankOf(OrderedBits(score), unit);
    }
  };
  for (int32_t first = 0; first < values.size; first += kValuesAtOnce) {
    const int32_t count = values.size <= kValuesAtOnce ? values.size : load(first);
#pragma unroll 2
    for (int32_t i = thread; i < count; i += kScoreThreads) {
      const float value = shared.values[i];
      if (value < bound) {
        continue;
      }
      if (values.shift == 0) {
        if (i > 0) {
          add_candidate(value, i);
        }
        continue;
      }
      const int32_t place = atomicAdd(&shared.groups_taken, 1);
      if (place < kMaxCandidateGroups) {
        shared.groups[place] = first + i;
      }
    }
  }
  __syncthreads();
  if (shared.groups_taken > kMaxCandidateGroups) {
    return false;
  }
  const int32_t in_groups = shared.groups_taken << values.shift;
  const auto unit_of = [&](int32_t i) {
    return (shared.groups[i >> values.shift] << values.shift) + (i & ((1 << values.shift) - 1));
  };
  if (in_groups > 0) {
    CopyValues(shared.values, in_groups, [&](int32_t i) { return scores + unit_of(i); });
#pragma unroll 1
    for (int32_t i = thread; i < in_groups; i += kScoreThreads) {
      const int32_t unit = unit_of(i);
      if (shared.values[i] >= bound && unit > 0 && unit < end) {
        add_candidate(shared.values[i], unit);
      }
    }
    __syncthreads();
  }
  const int32_t candidates = shared.candidates_taken;
  if (candidates > kMaxGroupCandidates) {
    return false;
  }
#pragma unroll 1
  for (int32_t first = 0; first < candidates; first += kScoreThreads / 4) {
    const int32_t i = first + thread / 4;
    const uint64_t rank = shared.candidates[min(i, candidates - 1)];
    const int32_t better = CountAbove<false>(shared.candidates, candidates, rank);
    if (better < places && thread % 4 == 0 && i < candidates) {
      shared.kept[better] = UnitOf(rank);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int32_t first = 0; first < places; first += kScoreThreads / 4) {
    const int32_t i = first + thread / 4;
    const int32_t unit = shared.kept[min(i, places - 1)];
    const int32_t from_there = CountAbove<true>(shared.kept, places, unit);
    if (thread % 4 == 0 && i < places) {
      list[places - from_there] = unit;
    }
  }
  return true;
}

// Whether blocks that begin late could take a list for due, or not, by a count that this kernel has
// written: then counts come when all blocks are done.
__device__ inline bool CountsComeLast(const SelectUnitsParams& params) {
  return params.policy.reuse_interval > 1 && params.policy.reuse_distance <= 0.0f;
}

// The list of pair `index`, whose scores and maxima are there. rehearses: goes through the code
// without a list; reads what may be anything. All threads of the block.
template <int32_t kGroupPages>
__device__ void MakeList(const SelectUnitsParams& params, const SelectionPair& pair, int32_t index,
                         bool rehearses, GroupListShared& shared) {
  // log2 of a group's tokens
  constexpr int32_t kGroupBits = 6 + (kGroupPages == 4 ? 2 : kGroupPages == 2 ? 1 : 0);
  const ListParts parts(params.policy, pair.tokens);
  const float* scores = UnitScores(params, index);
  GroupValues values{scores, parts.newest, 0};
  if (parts.newest > kFewUnits) {
    const int32_t shift = kGroupBits - UnitBits(params.policy);
    values = {GroupMaxima(params, index), ((parts.newest - 1) >> shift) + 1, shift};
  }
  int32_t places = parts.places();
  if (rehearses) {
    values.size = min(values.size, 1);
    places = 0;
  }
  int32_t* list = params.lists.units + pair.list * params.lists.capacity + 1;
  if (!KeepByGroups(scores, values, parts.newest, places, list, shared)) {
    __syncthreads();  // before bits take the values' place
    KeepByBits(scores, parts.newest, places, list, shared.bits);
  }
  if (!rehearses) {
    FinishList<kScoreThreads>(params, pair, parts, index, !CountsComeLast(params));
  }
}

// The lists of pairs maker, maker + makers, .. when their scores are there, which is when their
// tickets count Scorer::StepsOf them; these are zero then. Before it waits, the block goes once
// through the code that makes a list, so that its multiprocessor has it when it counts; what that
// turn left in the first-level cache goes when AwaitCount acquires. All threads of the block.
template <typename Scorer>
__device__ void MakeLists(const SelectUnitsParams& params, int32_t pairs, int32_t maker,
                          int32_t makers, int32_t* tickets, GroupListShared& shared) {
  bool rehearses = maker < pairs;
  for (int32_t index = maker; index < pairs;) {
    const SelectionPair pair(params, index);
    if (!rehearses) {
      if (!IsDue(params, pair, index)) {
        index += makers;
        continue;
      }
      if (threadIdx.x == 0) {
        AwaitCount(tickets + index, Scorer::StepsOf(params, pair));
        tickets[index] = 0;
      }
      __syncthreads();
    }
    MakeList<Scorer::kGroupPages>(params, pair, index, rehearses, shared);
    __syncthreads();  // before the next one's
    if (rehearses) {
      WaitForEarlierKernels();
      rehearses = false;
    } else {
      index += makers;
    }
  }
  if (maker >= pairs) {
    WaitForEarlierKernels();
  }
}

// What is left when a block has made its lists: the counts of rows that read all, and those that
// come last. ticket: zero, and zero again when the kernel ends. All threads of every block.
__device__ inline void CountLists(const SelectUnitsParams& params, int32_t pairs, int32_t* ticket) {
  const auto blocks = static_cast<int32_t>(gridDim.x);
  const bool last_counts = CountsComeLast(params);
  if (last_counts) {
    __syncthreads();
    const bool last = threadIdx.x == 0 && DrawTickets(ticket, 1) == blocks - 1;
    if (__syncthreads_or(last ? 1 : 0) == 0) {
      return;
    }
  } else if (static_cast<int32_t>(blockIdx.x) != blocks - 1) {
    return;
  }
  for (auto index = static_cast<int32_t>(threadIdx.x); index < pairs; index += kScoreThreads) {
    const SelectionPair pair(params, index);
    if (!pair.BeyondBudget(params)) {
      params.lists.counts[pair.list] = -1;
    } else if (last_counts && IsDue(params, pair, index)) {
      CountList(params, pair, ListParts(params.policy, pair.tokens).kept);
    }
  }
  if (last_counts && threadIdx.x == 0) {
    *ticket = 0;
  }
}

}  // namespace lserve::cuda
