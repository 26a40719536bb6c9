// A persistent grid's share of work that only the device knows: items of pairs (a row and a KV
// head), counted by every block for itself; and tickets and counts, by which its blocks learn how
// far the others are. Device code; of plans all threads of a block call together, of the others
// one.
#pragma once

#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// Planned at once. With a block's other shared memory it stays within the 99 KiB that every device
// of compute capability 8.0 or later has.
inline constexpr int32_t kPlanPairs = 192;

struct PlanShared {
  int32_t first_item[kPlanPairs + 1];
  int32_t warp_items[8];
};

// Plans the items of `count` pairs from `base` on, of which a pair has items_of(pair); their
// number. kThreads is the block's size.
template <int32_t kThreads, typename ItemsOf>
__device__ int32_t PlanItems(int32_t base, int32_t count, PlanShared& shared, ItemsOf items_of) {
  static_assert(kThreads <= 8 * kWarpLanes);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpLanes;
  // Each thread a run of pairs, then the runs' sums.
  const int32_t run = (count + kThreads - 1) / kThreads;
  const int32_t begin = min(thread * run, count);
  const int32_t end = min(begin + run, count);
  __syncthreads();  // earlier readers of the plan are done
  int32_t sum = 0;
  for (int32_t pair = begin; pair < end; ++pair) {
    const int32_t items = items_of(base + pair);
    shared.first_item[pair + 1] = items;
    sum += items;
  }
  const int32_t inclusive = SumUpToLane(sum, lane);
  if (lane == kWarpLanes - 1) {
    shared.warp_items[thread / kWarpLanes] = inclusive;
  }
  __syncthreads();
  int32_t first = inclusive - sum;
  for (int32_t warp = 0; warp < thread / kWarpLanes; ++warp) {
    first += shared.warp_items[warp];
  }
  for (int32_t pair = begin; pair < end; ++pair) {
    first += shared.first_item[pair + 1];
    shared.first_item[pair + 1] = first;
  }
  if (thread == 0) {
    shared.first_item[0] = 0;
  }
  __syncthreads();
  return shared.first_item[count];
}

// Of `count` planned pairs the one with `item`: the last whose first item is not above.
__device__ inline int32_t PlannedPair(const PlanShared& shared, int32_t count, int32_t item) {
  int32_t low = 0;
  int32_t high = count;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (shared.first_item[middle] <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Draws `count` tickets; how many were drawn before. What the block wrote before its last barrier
// is seen by the blocks that draw later ones, after their next barrier.
__device__ __forceinline__ int32_t DrawTickets(int32_t* tickets, int32_t count) {
  int32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;\n"
               : "=r"(before)
               : "l"(tickets), "r"(count)
               : "memory");
  return before;
}

// Adds to a count; who has seen the sum, and its block after its next barrier, sees what the block
// wrote before its last one.
__device__ __forceinline__ void Announce(int32_t* count, int32_t more) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(count), "r"(more) : "memory");
}
// A number; who has seen it sees what was written before it was stored by StoreReleased.
__device__ __forceinline__ int32_t LoadAcquired(const int32_t* from) {
  int32_t seen;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(seen) : "l"(from) : "memory");
  return seen;
}
__device__ __forceinline__ void StoreReleased(int32_t* to, int32_t number) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;\n" ::"l"(to), "r"(number) : "memory");
}

// Waits until the count is `wanted`, which blocks announce that run or will run.
__device__ __forceinline__ void AwaitCount(const int32_t* count, int32_t wanted) {
  while (LoadAcquired(count) != wanted) {
  }
}

// Calls work(pair, item of the pair) for this block's share of the items of `pairs` pairs. Which
// block does an item depends on the batch; what it does must not. work() begins at a barrier.
//
// With most_items above 0, the most that a pair has, nothing is planned: the grid has a block for
// each item that there can be, which for few pairs are done before a plan would be.
template <int32_t kThreads, typename ItemsOf, typename Work>
__device__ void ForPlannedItems(int32_t pairs, PlanShared& shared, ItemsOf items_of, Work work,
                                int32_t most_items = 0) {
  const bool planned = most_items == 0;
  for (int32_t base = 0; base < pairs; base += planned ? kPlanPairs : pairs) {
    const int32_t count = planned ? min(kPlanPairs, pairs - base) : pairs;
    const int32_t total =
        planned ? PlanItems<kThreads>(base, count, shared, items_of) : count * most_items;
    for (auto item = static_cast<int32_t>(blockIdx.x); item < total;
         item += static_cast<int32_t>(gridDim.x)) {
      const int32_t pair = planned ? PlannedPair(shared, count, item) : item / most_items;
      const int32_t of_pair = item - (planned ? shared.first_item[pair] : pair * most_items);
      if (planned || of_pair < items_of(pair)) {
        work(base + pair, of_pair);
      }
    }
  }
}

}  // namespace lserve::cuda
