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
// that the code is short, as it comes from afar: loops are unrolled no further than loads need to
// be under way together.
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

// `count` numbers to shared memory; whole: both addresses are multiples of 16. Past the barrier at
// its end. All threads of the block.
__device__ inline void CopyValues(float* to, const float* from, int32_t count, bool whole) {
  __syncthreads();  // what lay there was read
  const int32_t in_fours = whole ? count / 4 * 4 : 0;
#pragma unroll 1
  for (int32_t i = static_cast<int32_t>(threadIdx.x) * 4; i < in_fours; i += kScoreThreads * 4) {
    CopyAsync16(to + i, from + i);
  }
#pragma unroll 1
  for (int32_t i = in_fours + static_cast<int32_t>(threadIdx.x); i < count; i += kScoreThreads) {
    CopyAsync4(to + i, from + i);
  }
  CommitCopies();
  WaitCopies<0>();
  __syncthreads();
}

// Adds the numbers of a thread that `hits` has a bit for, item_of(bit), behind the first *taken of
// `items`, which has room for `room`; *taken counts also what finds none. All lanes of a warp.
template <typename T, typename ItemOf>
__device__ __forceinline__ void AddHits(uint32_t hits, T* items, int32_t room, int32_t* taken,
                                        ItemOf item_of) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpLanes;
  const int32_t own = __popc(hits);
  const int32_t inclusive = SumUpToLane(own, lane);
  int32_t place = lane == kWarpLanes - 1 ? atomicAdd(taken, inclusive) : 0;
  place = __shfl_sync(kWholeWarp, place, kWarpLanes - 1) + inclusive - own;
#pragma unroll 1
  for (; hits != 0; hits &= hits - 1) {
    if (place < room) {
      items[place] = item_of(__ffs(static_cast<int32_t>(hits)) - 1);
    }
    ++place;
  }
}

// The `places` first units of [1, end), ascending, to `list`; false if too many come into question.
// All threads of the block.
__device__ inline bool KeepByGroups(const float* scores, const GroupValues& values, int32_t end,
                                    int32_t places, int32_t* list, GroupListShared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  constexpr int32_t kWarps = kScoreThreads / kWarpLanes;
  constexpr int32_t kInTurn = 8;   // a thread's values whose loads do not wait for each other
  constexpr int32_t kOfMask = 32;  // a thread's values that a mask has bits for
  const auto load = [&](int32_t first) {
    const int32_t count = min(values.size - first, kValuesAtOnce);
    CopyValues(shared.values, values.from + first, count, values.shift > 0);
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
#pragma unroll 1
    for (int32_t base = thread; base < count; base += kInTurn * kScoreThreads) {
#pragma unroll
      for (int32_t i = 0; i < kInTurn; ++i) {
        const int32_t at = base + i * kScoreThreads;
        highest = fmaxf(highest, at < count ? shared.values[at] : -INFINITY);
      }
    }
  }
  shared.highest[thread] = highest;
  __syncwarp();
  int32_t reaching = 0;
#pragma unroll
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

  // Groups whose value reaches the bound, and what of their units does.
  for (int32_t first = 0; first < values.size; first += kValuesAtOnce) {
    const int32_t count = values.size <= kValuesAtOnce ? values.size : load(first);
#pragma unroll 1
    for (int32_t of_mask = 0; of_mask < count; of_mask += kOfMask * kScoreThreads) {
      uint32_t hits = 0;
#pragma unroll 1
      for (int32_t turn = 0; turn < kOfMask; turn += kInTurn) {
        const int32_t base = of_mask + turn * kScoreThreads + thread;
#pragma unroll
        for (int32_t i = 0; i < kInTurn; ++i) {
          const int32_t at = base + i * kScoreThreads;
          hits |= at < count && shared.values[at] >= bound ? 1u << i << turn : 0u;
        }
        if (base - thread + kInTurn * kScoreThreads >= count) {
          break;
        }
      }
      AddHits(hits, shared.groups, kMaxCandidateGroups, &shared.groups_taken,
              [&](int32_t bit) { return first + of_mask + bit * kScoreThreads + thread; });
    }
  }
  __syncthreads();
  if (shared.groups_taken > kMaxCandidateGroups) {
    return false;
  }
  const int32_t in_groups = shared.groups_taken << values.shift;
  const float* found = values.shift == 0 ? shared.values : scores;
  constexpr int32_t kScoresInTurn = 4;
#pragma unroll 1
  for (int32_t base = thread; base - thread < in_groups; base += kScoresInTurn * kScoreThreads) {
    int32_t units[kScoresInTurn];
    float of_units[kScoresInTurn];
#pragma unroll
    for (int32_t i = 0; i < kScoresInTurn; ++i) {
      const int32_t at = min(base + i * kScoreThreads, in_groups - 1);
      units[i] =
          (shared.groups[at >> values.shift] << values.shift) + (at & ((1 << values.shift) - 1));
      of_units[i] = found[min(units[i], end - 1)];
    }
    uint32_t hits = 0;
#pragma unroll
    for (int32_t i = 0; i < kScoresInTurn; ++i) {
      const bool competes = base + i * kScoreThreads < in_groups && units[i] > 0 && units[i] < end;
      hits |= competes && of_units[i] >= bound ? 1u << i : 0u;
    }
    AddHits(hits, shared.candidates, kMaxGroupCandidates, &shared.candidates_taken,
            [&](int32_t bit) {
              float score = of_units[0];
              int32_t unit = units[0];
#pragma unroll
              for (int32_t i = 1; i < kScoresInTurn; ++i) {
                score = bit == i ? of_units[i] : score;
                unit = bit == i ? units[i] : unit;
              }
              return RankOf(OrderedBits(score), unit);
            });
  }
  __syncthreads();
  const int32_t candidates = shared.candidates_taken;
  if (candidates > kMaxGroupCandidates) {
    return false;
  }
#pragma unroll 1
  for (int32_t i = thread; i < candidates; i += kScoreThreads) {
    const uint64_t rank = shared.candidates[i];
    int32_t better = 0;
#pragma unroll 8
    for (int32_t other = 0; other < candidates; ++other) {
      better += shared.candidates[other] > rank ? 1 : 0;
    }
    if (better < places) {
      shared.kept[better] = UnitOf(rank);
    }
  }
  __syncthreads();
  if (thread < places) {
    const int32_t unit = shared.kept[thread];
    int32_t before = 0;
#pragma unroll 8
    for (int32_t other = 0; other < places; ++other) {
      before += shared.kept[other] < unit ? 1 : 0;
    }
    list[before] = unit;
  }
  return true;
}

// Whether a list is due, or could be where queries are judged by their distance; the same for all
// blocks, also for one that begins late if counts come last. All threads of the block.
__device__ inline bool AnyIsDue(const SelectUnitsParams& params, int32_t pairs) {
  if (params.policy.reuse_distance > 0.0f) {
    return true;
  }
  bool due = false;
  for (auto index = static_cast<int32_t>(threadIdx.x); index < pairs; index += kScoreThreads) {
    due = due || IsDue(params, SelectionPair(params, index), index);
  }
  return __syncthreads_or(due ? 1 : 0) != 0;
}

// Whether counts come when all blocks are done: a block that begins late could otherwise take a
// list for due, or not, by a count that this kernel has written.
__device__ inline bool CountsComeLast(const SelectUnitsParams& params) {
  return params.policy.reuse_interval > 1 && params.policy.reuse_distance <= 0.0f;
}

// The list of pair `index`, whose scores and maxima are there. rehearses: goes through the code
// without a list; reads what may be anything. All threads of the block.
template <int32_t kGroupPages>
__device__ void MakeList(const SelectUnitsParams& params, const SelectionPair& pair, int32_t index,
                         bool rehearses, bool counted, GroupListShared& shared) {
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
    FinishList<kScoreThreads>(params, pair, parts, index, counted);
  }
}

// The lists of pairs maker, maker + makers, .. when their scores are there, which is when their
// tickets count Scorer::StepsOf them; these are zero then. Before it waits, the block goes once
// through the code that makes a list, so that its multiprocessor has it when it counts; what that
// turn left in the first-level cache goes when AwaitCount acquires. All threads of the block.
template <typename Scorer>
__device__ void MakeLists(const SelectUnitsParams& params, int32_t pairs, int32_t maker,
                          int32_t makers, bool last_counts, int32_t* tickets,
                          GroupListShared& shared) {
  bool rehearses = maker < pairs && (params.policy.reuse_distance > 0.0f ||
                                     IsDue(params, SelectionPair(params, maker), maker));
  if (!rehearses) {
    WaitForEarlierKernels();
  }
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
    MakeList<Scorer::kGroupPages>(params, pair, index, rehearses, !last_counts, shared);
    __syncthreads();  // before the next one's
    if (rehearses) {
      WaitForEarlierKernels();
      rehearses = false;
    } else {
      index += makers;
    }
  }
}

// What is left when a block has made its lists: the counts of rows that read all, and those that
// come last. ticket: zero, and zero again when the kernel ends. All threads of every block.
__device__ inline void CountLists(const SelectUnitsParams& params, int32_t pairs, bool last_counts,
                                  int32_t* ticket) {
  const auto blocks = static_cast<int32_t>(gridDim.x);
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
