// Prefill attention on Hopper's warpgroup products, for pages that are not boxed and padded head
// sizes of 64, 96 and 128 (attend_prefill.cuh has the rest). Architecture 90a.
//
// A block stays on its multiprocessor and takes one task after the other: a query block (128 rows)
// of a query head. Two warpgroups own 64 rows each, a page's, with queries, weights and output in
// registers; a warp of a third one walks the tasks ahead of them and copies keys and values into a
// ring of stages. What is contiguous in a page, the keys or the values of a head, is one bulk copy.
//
// A step is two pages, in registers the scores of 128 tokens. Scores of a step are multiplied while
// the weights of the one before are multiplied with their values, and the warpgroups take turns, so
// that one has products where the other has exponentials. With a threshold a step is one page, and
// a warpgroup whose rows all leave it out goes on after Q K^T.
//
// Operands. With U = 32 x padded bytes (a unit of 16 tokens), element (token, dim) of a plane lies
// at byte token / 16 U + dim / 8 256 + token % 16 16 + dim % 8 2: 8 tokens by 8 dims are a core
// matrix, those of tokens 8 to 15 of a unit follow 128 bytes behind, the next 8 dims 256, the next
// unit U.
//   Keys are K-major. A descriptor has one distance between columns, but 8 tokens are followed at
//   128 bytes and 16 at U; so one product takes the lower, another the upper halves of all units:
//   stride U, leading 256; 16 dims further is 512 bytes. Tile u of either product is of unit u.
//   Values of a unit are MN-major, 16 in depth: stride 256 (8 dims), leading 128 (8 tokens).
// Tile u of the lower and of the upper product, rounded, are just A of unit u's 16 tokens.
//
// A row's result depends on its position and its list: tokens that it does not see change nothing,
// bit for bit, and pages share a step by their numbers, or by their places in a list.
//
// Operations: 4 x keys seen x head size, for each row and head. At D = 128 a step of a warpgroup is
// 2 x 512 cycles of products, 512 of exponentials (16 a cycle and multiprocessor).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/prefill_ring.cuh"
#include "kernels/cuda/prefill_walk.cuh"
#include "kernels/cuda/warpgroup.cuh"

namespace lserve::cuda {

// A warpgroup that multiplies: 64 rows, one task after the other.
template <int32_t kDim, bool kLeavesOut>
class PrefillGroup {
 public:
  using Tile = WgmmaTile<kDim, kLeavesOut>;
  using Ring = typename Tile::Ring;
  static constexpr int32_t kUnits = Tile::kUnits;

  __device__ PrefillGroup(const AttendPrefillParams& params, std::byte* stages, Ring& ring)
      : params_(params),
        stages_(stages),
        ring_(ring),
        thread_(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        group_(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads) {}

  __device__ void Run(int32_t query_blocks) {
    if (group_ == 1) {
      EndTurn();  // the other begins
    }
    const int32_t tasks = query_blocks * params_.q_heads;
    auto index = static_cast<int32_t>(blockIdx.x);
    int32_t entry = 0;
    LoadQueries(index < tasks ? entry : kNoTask);
    while (index < tasks) {
      index += static_cast<int32_t>(gridDim.x);
      const int32_t next = index >= tasks ? kNoTask : entry == Tile::kStages ? 0 : entry + 1;
      Begin(ring_.tasks[entry]);
      if constexpr (kLeavesOut) {
        AttendInTurn(next);
      } else {
        AttendOverlapped(next);
      }
      Store(ring_.tasks[entry]);
      entry = next;
    }
    if (group_ == 0) {
      BeginTurn();  // which the other has left
    }
  }

 private:
  static constexpr int32_t kNoTask = -1;

  // ---- The ring

  __device__ void WaitKeys() { WaitPhase(&ring_.keys_full[keys_.stage], keys_.parity); }
  __device__ void WaitValues() { WaitPhase(&ring_.values_full[values_.stage], values_.parity); }
  __device__ PrefillStep ReadStep() const { return ring_.steps[keys_.stage]; }
  __device__ void ReleaseKeys() {
    __syncwarp();
    if (lane_ == 0) {
      Arrive(&ring_.keys_empty[keys_.stage]);
    }
    keys_.Advance();
  }
  __device__ void ReleaseValues() {
    __syncwarp();
    if (lane_ == 0) {
      Arrive(&ring_.values_empty[values_.stage]);
    }
    values_.Advance();
  }

  // ---- Barriers: 1 and 2, a group's turn; 3 and 4, among its own threads.

  __device__ void BeginTurn() { SyncNamed(1 + group_, Tile::kGroups * kWarpgroupThreads); }
  __device__ void EndTurn() { ArriveNamed(2 - group_, Tile::kGroups * kWarpgroupThreads); }
  __device__ int32_t own_barrier() const { return 3 + group_; }

  // ---- A task

  __device__ void Begin(const PrefillTask& task) {
    page_ = task.query_block * 2 + group_;
    first_ = FirstRow(task);
    sink_ = task.streams ? params_.streaming.sink_tokens : 0;
    local_ = task.streams ? params_.streaming.local_tokens : 0x3FFFFFFF;
    scale_ = 1.4426950408889634f / sqrtf(static_cast<float>(HeadDim(task)));
    margin_ = log2f(params_.policy.threshold);
    dense_end_ = task.streams ? 0x7FFFFFFF : params_.policy.dense_tokens;
    begin_ = task.first;
    end_ = task.end;
    newest_ = task.chunk.first_position + task.chunk.rows - 1;
    present_ = page_ * kPageTokens < task.end && (page_ + 1) * kPageTokens > task.first;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      max_[half] = -INFINITY;
      sum_[half] = 0.0f;
    }
#pragma unroll
    for (int32_t i = 0; i < kDim / 2; ++i) {
      output_[i] = 0.0f;
    }
    scored_ = weighed_ = 0;
  }

  // Of the task at `entry`, if there is one, once its first step has come; zero where the query
  // block has no row of the chunk.
  __device__ void LoadQueries(int32_t entry) {
    if (entry == kNoTask) {
      return;
    }
    WaitKeys();
    const PrefillTask& task = ring_.tasks[entry];
    const int32_t head_dim = HeadDim(task);
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const int32_t position = FirstRow(task) + half * 8;
      const bool in_chunk = position >= task.first && position < task.end;
      const auto* from = static_cast<const uint16_t*>(params_.q) + RowOffset(task, position);
#pragma unroll
      for (int32_t t = 0; t < kDim / 16; ++t) {
#pragma unroll
        for (int32_t upper = 0; upper < 2; ++upper) {
          const int32_t d = t * 16 + upper * 8 + lane_ % 4 * 2;
          queries_[t][upper * 2 + half] =
              in_chunk && d < head_dim ? *reinterpret_cast<const uint32_t*>(from + d) : 0u;
        }
      }
    }
  }

  __device__ int32_t HeadDim(const PrefillTask& task) const {
    return task.streams ? params_.streaming.layout.head_dim : params_.retrieval.layout.head_dim;
  }
  // Position of the thread's first row.
  __device__ int32_t FirstRow(const PrefillTask& task) const {
    return task.query_block * kQueryBlockTokens + group_ * kPageTokens + thread_ / kWarpLanes * 16 +
           lane_ / 4;
  }
  // Of a row in queries and output, [rows, q_heads, head_dim].
  __device__ int64_t RowOffset(const PrefillTask& task, int32_t position) const {
    const int64_t row = task.chunk.first_row + position - task.chunk.first_position;
    return (row * params_.q_heads + task.q_head) * HeadDim(task);
  }

  // Scores of the next step while the last one's weights meet their values; while the task's last
  // do, the queries of the next one arrive.
  __device__ void AttendOverlapped(int32_t next_task) {
    PrefillStep step = ReadStep();
    FenceProducts();
    MultiplyKeys();
    CommitProducts();
    WaitProducts<0>();
    PinScores();
    ReleaseKeys();
    Count(step);
    float factor[2];
    Softmax(step, factor);
    PackWeights();
    while (!step.last) {
      WaitKeys();
      const PrefillStep next = ReadStep();
      WaitValues();
      ClearBehindNewest(step);
      BeginTurn();
      FenceProducts();
      MultiplyKeys();
      CommitProducts();
      MultiplyValues();
      CommitProducts();
      EndTurn();
      WaitProducts<1>();
      PinScores();
      ReleaseKeys();
      Count(next);
      Softmax(next, factor);
      WaitProducts<0>();
      PinRegisters(output_);
      ReleaseValues();
      Rescale(factor);
      PackWeights();
      step = next;
    }
    WaitValues();
    ClearBehindNewest(step);
    FenceProducts();
    MultiplyValues();
    CommitProducts();
    LoadQueries(next_task);
    WaitProducts<0>();
    PinRegisters(output_);
    ReleaseValues();
  }

  // One step after the other, which may be left out.
  __device__ void AttendInTurn(int32_t next_task) {
    for (bool last = false; !last;) {
      WaitKeys();
      const PrefillStep step = ReadStep();
      last = step.last;
      const bool seen = step.pages[0] <= page_;
      bool weighs = false;
      float factor[2];
      if (seen) {
        FenceProducts();
        MultiplyKeys();
        CommitProducts();
        WaitProducts<0>();
        PinScores();
        scored_ += present_ ? 1 : 0;
        weighs = Softmax(step, factor);
      }
      ReleaseKeys();
      WaitValues();
      if (weighs) {
        weighed_ += present_ ? 1 : 0;
        Rescale(factor);
        PackWeights();
        ClearBehindNewest(step);
        FenceProducts();
        MultiplyValues();
        CommitProducts();
        WaitProducts<0>();
        PinRegisters(output_);
      }
      ReleaseValues();
    }
    LoadQueries(next_task);
  }

  // ---- Products

  __device__ __forceinline__ void PinScores() {
    PinRegisters(scores_[0]);
    PinRegisters(scores_[1]);
  }

  __device__ __forceinline__ void MultiplyKeys() {
    const MatrixDescriptor keys(SharedAddress(stages_ + keys_.stage * Tile::kStageBytes), 256,
                                Tile::kUnitBytes);
    PinScores();
#pragma unroll
    for (int32_t upper = 0; upper < 2; ++upper) {
#pragma unroll
      for (int32_t t = 0; t < kDim / 16; ++t) {
        MultiplyKMajor(scores_[upper], queries_[t], keys.At(t * 512 + upper * 128), t == 0 ? 0 : 1);
      }
    }
  }

  __device__ __forceinline__ void MultiplyValues() {
    const MatrixDescriptor values(
        SharedAddress(stages_ + values_.stage * Tile::kStageBytes + Tile::kKeyBytes), 128, 256);
    PinRegisters(output_);
#pragma unroll
    for (int32_t u = 0; u < kUnits; ++u) {
      MultiplyMnMajor(output_, weights_[u], values.At(u * Tile::kUnitBytes), 1);
    }
  }

  // Memory behind the newest token may hold anything, and 0 x NaN is NaN. Either group clears it,
  // for itself.
  __device__ void ClearBehindNewest(const PrefillStep& step) {
    const int32_t newest_page = newest_ / kPageTokens;
    const int32_t tokens = newest_ % kPageTokens + 1;
    if (tokens == kPageTokens ||
        (step.pages[0] != newest_page && (Tile::kPages == 1 || step.pages[1] != newest_page))) {
      return;
    }
    std::byte* values = stages_ + values_.stage * Tile::kStageBytes + Tile::kKeyBytes;
#pragma unroll
    for (int32_t slot = 0; slot < Tile::kPages; ++slot) {
      if (step.pages[slot] != newest_page && step.pages[slot] != kNoPage) {
        continue;
      }
#pragma unroll 1
      for (int32_t i = thread_; i < kPageTokens * kDim / 8; i += kWarpgroupThreads) {
        const int32_t token = i % kPageTokens;
        if (token >= tokens) {
          *reinterpret_cast<uint4*>(values + slot * Tile::kPlaneBytes +
                                    ElementIndex(token, i / kPageTokens * 8, kDim) * 2) =
              uint4{0, 0, 0, 0};
        }
      }
    }
    FenceAsyncProxy();
    SyncNamed(own_barrier(), kWarpgroupThreads);
  }

  // ---- Softmax

  // Token of element i of tile u, `upper` half of its unit.
  __device__ __forceinline__ int32_t TokenOf(const PrefillStep& step, int32_t u, int32_t upper,
                                             int32_t i) const {
    return step.pages[u / kPageUnits] * kPageTokens + u % kPageUnits * kUnitTokens + upper * 8 +
           lane_ % 4 * 2 + i % 2;
  }

  __device__ __forceinline__ void Mask(const PrefillStep& step) {
    const int32_t first = page_ * kPageTokens;
    const int32_t last = first + kPageTokens - 1;
#pragma unroll
    for (int32_t slot = 0; slot < Tile::kPages; ++slot) {
      const int32_t token = step.pages[slot] * kPageTokens;
      if (token + kPageTokens - 1 <= first &&
          (token + kPageTokens - 1 < sink_ || last - token < local_)) {
        continue;
      }
#pragma unroll
      for (int32_t u = slot * kPageUnits; u < (slot + 1) * kPageUnits; ++u) {
#pragma unroll
        for (int32_t upper = 0; upper < 2; ++upper) {
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            const int32_t position = first_ + i / 2 * 8;
            const int32_t at = TokenOf(step, u, upper, i);
            if (at > position || (at >= sink_ && position - at >= local_)) {
              scores_[upper][u * 4 + i] = -INFINITY;
            }
          }
        }
      }
    }
  }

  // Scores become weights relative to the new maximum; factor is what earlier sums are scaled with.
  // False if every row leaves the step out.
  __device__ __forceinline__ bool Softmax(const PrefillStep& step, float (&factor)[2]) {
    Mask(step);
    float highest[2];
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      float of_lane = -INFINITY;
#pragma unroll
      for (int32_t u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int32_t upper = 0; upper < 2; ++upper) {
          of_lane = fmaxf(of_lane, fmaxf(scores_[upper][u * 4 + half * 2],
                                         scores_[upper][u * 4 + half * 2 + 1]));
        }
      }
      highest[half] = MaxOverLanes<kOverColumns>(of_lane) * scale_;
    }
    if constexpr (kLeavesOut) {
      if (!LeaveOut(highest)) {
        return false;
      }
    }
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const float next = fmaxf(max_[half], highest[half]);
      // A row that leaves the step out has a highest score of minus infinity and a finite maximum;
      // its weights are those below any minimum.
      const bool none = kLeavesOut ? highest[half] == -INFINITY : next == -INFINITY;
      factor[half] = none ? 1.0f : Exp2(max_[half] - next);
      const float base = none ? INFINITY : next;
      max_[half] = next;
      float sum = 0.0f;
#pragma unroll
      for (int32_t u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int32_t upper = 0; upper < 2; ++upper) {
#pragma unroll
          for (int32_t e = 0; e < 2; ++e) {
            float& score = scores_[upper][u * 4 + half * 2 + e];
            score = Exp2(fmaf(score, scale_, -base));
            sum += score;
          }
        }
      }
      sum_[half] = sum_[half] * factor[half] + sum;
    }
    return true;
  }

  // Sets the highest score of rows that leave the step out to minus infinity. False if all rows of
  // the chunk do.
  __device__ bool LeaveOut(float (&highest)[2]) {
    bool weighs = false;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const int32_t position = first_ + half * 8;
      const bool kept =
          position < dense_end_ || highest[half] >= fmaxf(max_[half], highest[half]) + margin_;
      highest[half] = kept ? highest[half] : -INFINITY;
      weighs = weighs || (position >= begin_ && position < end_ && kept);
    }
    return AnyNamed(own_barrier(), kWarpgroupThreads, weighs);
  }

  __device__ __forceinline__ void Rescale(const float (&factor)[2]) {
    // As a rule no row has a new maximum.
    if (__any_sync(kWholeWarp, factor[0] != 1.0f || factor[1] != 1.0f) != 0) {
#pragma unroll
      for (int32_t i = 0; i < kDim / 2; ++i) {
        output_[i] *= factor[i / 2 % 2];
      }
    }
  }

  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int32_t u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const float* pair = scores_[i / 2] + u * 4 + i % 2 * 2;
        weights_[u][i] = PackBf16(pair[0], pair[1]);
      }
    }
  }

  // ---- Results

  __device__ void Count(const PrefillStep& step) {
#pragma unroll
    for (int32_t slot = 0; slot < Tile::kPages; ++slot) {
      scored_ += present_ && step.pages[slot] <= page_ ? 1 : 0;
    }
    weighed_ = scored_;
  }

  // Rows [task.first, task.end) to output, [rows, q_heads, head_dim]; what was read to the
  // counters.
  __device__ void Store(const PrefillTask& task) {
    const int32_t head_dim = HeadDim(task);
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const float sum = SumOverLanes<kOverColumns>(sum_[half]);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int32_t position = first_ + half * 8;
      if (position < task.first || position >= task.end) {
        continue;
      }
      auto* to = static_cast<uint16_t*>(params_.output) + RowOffset(task, position);
#pragma unroll
      for (int32_t t = 0; t < kDim / 8; ++t) {
        const int32_t d = t * 8 + lane_ % 4 * 2;
        if (d < head_dim) {
          *reinterpret_cast<uint32_t*>(to + d) = PackBf16(output_[t * 4 + half * 2] * inverse,
                                                          output_[t * 4 + half * 2 + 1] * inverse);
        }
      }
    }
    if (params_.blocks != nullptr && !task.streams && thread_ == 0) {
      Add(&params_.blocks->scored, scored_);
      Add(&params_.blocks->weighed, weighed_);
    }
  }

  __device__ static void Add(int64_t* counter, int32_t count) {
    atomicAdd(reinterpret_cast<unsigned long long*>(counter),
              static_cast<unsigned long long>(count));
  }

  const AttendPrefillParams& params_;
  std::byte* stages_;
  Ring& ring_;
  int32_t thread_;  // in the group
  int32_t lane_;
  int32_t group_;
  RingPlace<Tile::kStages> keys_;
  RingPlace<Tile::kStages> values_;

  int32_t page_;   // of the group's rows
  int32_t first_;  // position of the thread's first row; the other is 8 behind
  int32_t sink_;
  int32_t local_;
  float scale_;
  int32_t newest_;  // position of the chunk's last row
  // With a threshold.
  int32_t begin_;  // positions of the chunk's rows in the query block
  int32_t end_;
  int32_t dense_end_;  // rows at positions below it read everything
  float margin_;       // of the policy's threshold, in powers of two
  bool present_;       // some row of the group is the chunk's
  int32_t scored_;     // pages of which the group's rows saw Q K^T
  int32_t weighed_;    // of these, some row did not leave the page out

  uint32_t queries_[kDim / 16][4];
  float scores_[2][kUnits * 4];  // lower and upper halves of the units
  uint32_t weights_[kUnits][4];
  float output_[kDim / 2];
  float max_[2];
  float sum_[2];  // of this lane's tokens
};

template <int32_t kDim, bool kLeavesOut>
__global__ void __launch_bounds__(WgmmaTile<kDim, kLeavesOut>::kThreads, 1)
    AttendPrefillWgmmaKernel(const __grid_constant__ AttendPrefillParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = WgmmaTile<kDim, kLeavesOut>;
  using Ring = typename Tile::Ring;
  std::byte* stages = SharedMemory();
  Ring& ring = *reinterpret_cast<Ring*>(stages + Tile::kStages * Tile::kStageBytes);
  if (threadIdx.x == 0) {
    for (int32_t stage = 0; stage < Tile::kStages; ++stage) {
      constexpr int32_t kWarps = Tile::kGroups * kWarpgroupThreads / kWarpLanes;
      InitBarrier(&ring.keys_full[stage], 1);
      InitBarrier(&ring.values_full[stage], 1);
      InitBarrier(&ring.keys_empty[stage], kWarps);
      InitBarrier(&ring.values_empty[stage], kWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  const int32_t query_blocks = QueryBlocks(params.batch);
  if (threadIdx.x >= Tile::kGroups * kWarpgroupThreads) {
    GiveRegisters<Tile::kCopyRegisters>();
    if (threadIdx.x / kWarpLanes == Tile::kGroups * kWarpgroupThreads / kWarpLanes) {
      CopySteps<kDim, kLeavesOut>(params, query_blocks, stages, ring);
    }
  } else {
    TakeRegisters<Tile::kProductRegisters>();
    PrefillGroup<kDim, kLeavesOut>(params, stages, ring).Run(query_blocks);
  }
#endif
}

// Launches the instance for a padded head size of kDim. Needs code of architecture 90a.
template <int32_t kDim>
void LaunchAttendPrefillWgmma(const AttendPrefillParams& params, cudaStream_t stream);

template <int32_t kDim, bool kLeavesOut>
void LaunchAttendPrefillWgmmaAs(const AttendPrefillParams& params, cudaStream_t stream) {
  using Tile = WgmmaTile<kDim, kLeavesOut>;
  const int64_t query_blocks =
      int64_t{params.batch.max_rows} / kQueryBlockTokens + 2 * int64_t{params.batch.max_chunks};
  Launch("attend_prefill", AttendPrefillWgmmaKernel<kDim, kLeavesOut>,
         dim3(static_cast<unsigned>(PersistentBlocks(query_blocks * params.q_heads, 1))),
         Tile::kThreads,
         Tile::kStages * Tile::kStageBytes + static_cast<int64_t>(sizeof(typename Tile::Ring)),
         stream, params);
}

#define LSERVE_INSTANTIATE_ATTEND_PREFILL_WGMMA(kDim)                                           \
  template <>                                                                                   \
  void LaunchAttendPrefillWgmma<kDim>(const AttendPrefillParams& params, cudaStream_t stream) { \
    if (params.policy.threshold > 0.0f) {                                                       \
      LaunchAttendPrefillWgmmaAs<kDim, true>(params, stream);                                   \
    } else {                                                                                    \
      LaunchAttendPrefillWgmmaAs<kDim, false>(params, stream);                                  \
    }                                                                                           \
  }

}  // namespace lserve::cuda
