// How keys and values come to the warpgroups of prefill attention (attend_prefill_wgmma.cuh): a
// ring of stages in shared memory, and the warp that fills them. Architecture 90a; device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/prefill_walk.cuh"
#include "kernels/cuda/warpgroup.cuh"

namespace lserve::cuda {

// What a stage holds. Of a page that is missing from a step (kNoPage) the other one is there in its
// place.
struct PrefillStep {
  int32_t pages[2];
  bool last;  // of its task
};

// Behind the stages. Barriers of a stage: keys or values have come, or are done with.
template <int32_t kStages, int32_t kPages>
struct PrefillRing {
  uint64_t keys_full[kStages];
  uint64_t keys_empty[kStages];
  uint64_t values_full[kStages];
  uint64_t values_empty[kStages];
  PrefillStep steps[kStages];  // valid as long as the keys
  // What the warp that copies goes through, not in its registers.
  PrefillTask task;
  StepWalk<kPages> walk;
  // Of the task that a stage begins, and until the group that works on it takes the next one: a
  // stage is filled again after later keys are done with, so one more than there are stages.
  PrefillTask tasks[kStages + 1];
};

template <int32_t kDim, bool kLeavesOut>
struct WgmmaTile {
  static constexpr int32_t kGroups = 2;  // of 64 rows
  static constexpr int32_t kThreads = (kGroups + 1) * kWarpgroupThreads;
  static constexpr int32_t kPages = kLeavesOut ? 1 : 2;  // in a step
  static constexpr int32_t kUnits = kPages * kPageUnits;
  static constexpr int32_t kPlaneBytes = kPageTokens * kDim * 2;
  static constexpr int32_t kUnitBytes = kUnitTokens * kDim * 2;
  static constexpr int32_t kKeyBytes = kPages * kPlaneBytes;  // of a step
  static constexpr int32_t kStageBytes = 2 * kKeyBytes;
  static constexpr int32_t kStages = 192 * 1024 / kStageBytes < 8 ? 192 * 1024 / kStageBytes : 8;
  // Registers of a thread that copies and of one that multiplies, of 65536 together.
  static constexpr int32_t kCopyRegisters = 40;
  static constexpr int32_t kProductRegisters = 232;
  using Ring = PrefillRing<kStages, kPages>;
};

// A place in the ring.
template <int32_t kStages>
struct RingPlace {
  int32_t stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= stage == 0 ? 1u : 0u;
  }
};

// The task's queries to the second-level cache; by a warp.
__device__ inline void PrefetchQueries(const AttendPrefillParams& params, const PrefillTask& task) {
  const int32_t head_dim =
      task.streams ? params.streaming.layout.head_dim : params.retrieval.layout.head_dim;
  for (int32_t position = task.first + static_cast<int32_t>(threadIdx.x) % kWarpLanes;
       position < task.end; position += kWarpLanes) {
    const int64_t row = task.chunk.first_row + position - task.chunk.first_position;
    const auto* queries =
        static_cast<const uint16_t*>(params.q) + (row * params.q_heads + task.q_head) * head_dim;
    for (int32_t d = 0; d < head_dim; d += 64) {
      PrefetchLine(queries + d);
    }
  }
}

// The warp that copies.
template <int32_t kDim, bool kLeavesOut>
__device__ void CopySteps(const AttendPrefillParams& params, int32_t query_blocks,
                          std::byte* stages, typename WgmmaTile<kDim, kLeavesOut>::Ring& ring) {
  using Tile = WgmmaTile<kDim, kLeavesOut>;
  constexpr int32_t kBatch = kWarpLanes / Tile::kPages;  // steps whose pages the lanes look up
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpLanes;
  const int32_t slot = lane % Tile::kPages;
  RingPlace<Tile::kStages> place;
  int32_t entry = 0;
  for (auto index = static_cast<int32_t>(blockIdx.x); index < query_blocks * params.q_heads;
       index += static_cast<int32_t>(gridDim.x)) {
    if (lane == 0) {
      FindTask(params, query_blocks, index, ring.task);
      ring.walk = StepWalk<Tile::kPages>(params, ring.task);
    }
    __syncwarp();
    const PrefillTask& task = ring.task;
    const StepWalk<Tile::kPages>& walk = ring.walk;
    PrefetchQueries(params, task);
    for (int32_t base = 0; base < walk.size(); base += kBatch) {
      const int32_t own = base + lane / Tile::kPages;
      const int32_t number = own < walk.size() ? walk.Page(own, slot) : kNoPage;
      const std::byte* page = number == kNoPage ? nullptr : FullPage(params, task, number);
      if constexpr (Tile::kPages == 2) {
        const auto other = __shfl_xor_sync(kWholeWarp, reinterpret_cast<uintptr_t>(page), 1);
        page = page == nullptr ? reinterpret_cast<const std::byte*>(other) : page;
      }
      const KvPageLayout& layout = task.streams ? params.streaming.layout : params.retrieval.layout;
      const std::byte* keys = page + layout.key_offset(task.head);
      const std::byte* values = page + layout.value_offset(task.head);
      const uint32_t present = __ballot_sync(kWholeWarp, page != nullptr);
#pragma unroll 1
      for (int32_t leader = 0; leader < kWarpLanes; leader += Tile::kPages) {
        if ((present >> leader & 1u) == 0) {
          continue;
        }
        std::byte* to = stages + place.stage * Tile::kStageBytes + slot * Tile::kPlaneBytes;
        const bool own_step = lane - slot == leader;
        WaitPhase(&ring.keys_empty[place.stage], place.parity ^ 1);
        if (own_step) {
          ring.steps[place.stage].pages[slot] = number;
        }
        if (lane == leader) {
          ring.steps[place.stage].last = own == walk.size() - 1;
          if (own == 0) {
            ring.tasks[entry] = task;
          }
        }
        __syncwarp();
        if (lane == leader) {
          ArriveExpecting(&ring.keys_full[place.stage], Tile::kKeyBytes);
        }
        if (own_step) {
          CopyBulk(to, keys, Tile::kPlaneBytes, &ring.keys_full[place.stage]);
        }
        WaitPhase(&ring.values_empty[place.stage], place.parity ^ 1);
        if (lane == leader) {
          ArriveExpecting(&ring.values_full[place.stage], Tile::kKeyBytes);
        }
        if (own_step) {
          CopyBulk(to + Tile::kKeyBytes, values, Tile::kPlaneBytes, &ring.values_full[place.stage]);
        }
        place.Advance();
      }
    }
    entry = entry == Tile::kStages ? 0 : entry + 1;
    __syncwarp();
  }
}

}  // namespace lserve::cuda
