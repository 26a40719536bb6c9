// Prefill attention: a block takes a query block (128 tokens at an absolute multiple) of a chunk
// and one query head, and walks an ordered list of KV blocks (pages of 64 tokens) with an online
// softmax. Dense, streaming and listed heads differ in their list alone. Warps own 16 or 32 rows;
// keys and values arrive by asynchronous copies, one KV block ahead, in the order in which pages
// have them, which ldmatrix reads without bank conflicts.
//
// A boxed lane's page is seen in full by its own rows and as its codes read back by later ones: a
// query block over two pages visits the first of them twice, each time with the warps that it
// concerns. Codes are read back into the shared tile.
//
// A row's result depends on its position and its list: where every token of a KV block is masked,
// the step changes nothing, bit for bit.
//
// With a threshold each KV block is a step of the walk: a row compares the block's highest score
// with the highest that it has seen, this block included, and a warp whose rows all leave the block
// out goes on after Q K^T.
//
// Operations: 4 x keys seen x head size, for each row and head, on m16n8k16. Hopper has its own
// variant for most shapes (attend_prefill_wgmma.cuh).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/prefill_walk.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

template <int32_t kDim>
struct PrefillTile {
  static constexpr int32_t kRowTiles = kDim > 128 ? 1 : 2;  // of 16 rows, in a warp
  static constexpr int32_t kWarpRows = 16 * kRowTiles;
  static constexpr int32_t kThreads = kQueryBlockTokens / kWarpRows * kWarpLanes;
  static constexpr int32_t kQueryBytes = kQueryBlockTokens * kDim * 2;
  static constexpr int32_t kPlaneBytes = kPageTokens * kDim * 2;  // keys or values of a KV block
  static constexpr int32_t kStages = kDim > 128 ? 1 : 2;
  static constexpr int32_t kBytes = kQueryBytes + kStages * 2 * kPlaneBytes;
};

// A warp's rows: queries from shared memory, softmax and output in registers. A padded head size
// below kDim leaves tiles out.
template <int32_t kDim, bool kLeavesOut>
class PrefillWarp {
 public:
  using Tile = PrefillTile<kDim>;
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr int32_t kRowTiles = Tile::kRowTiles;
  static constexpr int32_t kKeyTiles = kPageTokens / 16;
  static constexpr bool kExact = kDim <= 128;

  __device__ PrefillWarp(const KvPageLayout& layout, const PrefillTask& task, int32_t sink,
                         int32_t local, const PrefillPolicy& policy, const std::byte* queries)
      : queries_(queries),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        padded_(layout.padded_head_dim),
        first_(task.query_block * kQueryBlockTokens +
               static_cast<int32_t>(threadIdx.x) / kWarpLanes * Tile::kWarpRows),
        sink_(sink),
        local_(local),
        scale_(1.4426950408889634f / sqrtf(static_cast<float>(layout.head_dim))),
        begin_(task.first),
        end_(task.end),
        present_(first_ < end_ && first_ + Tile::kWarpRows > begin_),
        dense_end_(task.streams ? 0x7FFFFFFF : policy.dense_tokens),
        margin_(log2f(policy.threshold)) {
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
      max_[m][0] = max_[m][1] = -INFINITY;
    }
  }

  // The page that holds all rows of the warp.
  __device__ int32_t page() const { return first_ / kPageTokens; }

  // Takes a KV block into the softmax.
  __device__ void Attend(int32_t block, const std::byte* keys, const std::byte* values) {
    float scores[kRowTiles][2 * kKeyTiles][4];
    Scores(keys, scores);
    scored_ += present_ ? 1 : 0;
    if (!Softmax(block * kPageTokens, scores)) {
      return;
    }
    weighed_ += present_ ? 1 : 0;
#pragma unroll
    for (int32_t k = 0; k < kKeyTiles; ++k) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const float* pair = scores[m][2 * k + i / 2] + i % 2 * 2;
          p[m][i] = PackBf16(pair[0], pair[1]);
        }
      }
      ForTiles([&](int32_t t) {
        uint32_t b[4];
        LoadTransposed(b, values + k * (kUnitTokens * 2) * padded_ + t * 512 + lane_ * 16);
#pragma unroll
        for (int32_t m = 0; m < kRowTiles; ++m) {
          MultiplyAdd(output_[m][2 * t], p[m][0], p[m][1], p[m][2], p[m][3], b[0], b[1]);
          MultiplyAdd(output_[m][2 * t + 1], p[m][0], p[m][1], p[m][2], p[m][3], b[2], b[3]);
        }
      });
    }
  }

  // Rows [task.first, task.end) to output, [rows, q_heads, head_dim].
  __device__ void Store(const AttendPrefillParams& params, const PrefillTask& task,
                        int32_t head_dim) {
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const float sum = SumOverLanes<kOverColumns>(sum_[m][half]);
        const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
        const int32_t position = first_ + m * 16 + half * 8 + lane_ / 4;
        if (position < task.first || position >= task.end) {
          continue;
        }
        const int64_t row = task.chunk.first_row + position - task.chunk.first_position;
        auto* to =
            static_cast<uint16_t*>(params.output) + (row * params.q_heads + task.q_head) * head_dim;
#pragma unroll
        for (int32_t t = 0; t < 2 * kTiles; ++t) {
          const int32_t d = t * 8 + lane_ % 4 * 2;
          if (d < head_dim) {
            *reinterpret_cast<uint32_t*>(to + d) =
                PackBf16(output_[m][t][2 * half] * inverse, output_[m][t][2 * half + 1] * inverse);
          }
        }
      }
    }
  }

  // Adds what the warp read to the step's counters.
  __device__ void Count(PrefillBlocks* blocks) const {
    if (lane_ == 0) {
      AddTo(&blocks->scored, scored_);
      AddTo(&blocks->weighed, weighed_);
    }
  }

 private:
  __device__ static void AddTo(int64_t* counter, int32_t count) {
    atomicAdd(reinterpret_cast<unsigned long long*>(counter),
              static_cast<unsigned long long>(count));
  }

  template <typename Visit>
  __device__ __forceinline__ void ForTiles(Visit visit) const {
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      if (kExact || t * 16 < padded_) {
        visit(t);
      }
    }
  }

  __device__ void Scores(const std::byte* keys,
                         float (&scores)[kRowTiles][2 * kKeyTiles][4]) const {
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t n = 0; n < 2 * kKeyTiles; ++n) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          scores[m][n][i] = 0.0f;
        }
      }
    }
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
    ForTiles([&](int32_t t) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int32_t m = 0; m < kRowTiles; ++m) {
        LoadMatrices(a[m], queries_ + (warp * kRowTiles + m) * (kUnitTokens * 2) * padded_ +
                               t * 512 + lane_ * 16);
      }
#pragma unroll
      for (int32_t k = 0; k < kKeyTiles; ++k) {
        uint32_t b[4];
        LoadMatrices(b, keys + k * (kUnitTokens * 2) * padded_ + t * 512 + lane_ * 16);
#pragma unroll
        for (int32_t m = 0; m < kRowTiles; ++m) {
          MultiplyAdd(scores[m][2 * k], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[2]);
          MultiplyAdd(scores[m][2 * k + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[1], b[3]);
        }
      }
    });
  }

  // Scores become probabilities relative to the new maximum; earlier sums are scaled to it. False
  // if every row leaves the block out.
  __device__ bool Softmax(int32_t first_token, float (&scores)[kRowTiles][2 * kKeyTiles][4]) {
    const int32_t last_token = first_token + kPageTokens - 1;
    const int32_t last = first_ + Tile::kWarpRows - 1;
    if (last_token > first_ || (last_token >= sink_ && last - first_token >= local_)) {
      Mask(first_token, scores);
    }
    float highest[kRowTiles][2];
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        float of_lane = -INFINITY;
#pragma unroll
        for (int32_t n = 0; n < 2 * kKeyTiles; ++n) {
          of_lane = fmaxf(of_lane, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        }
        highest[m][half] = MaxOverLanes<kOverColumns>(of_lane) * scale_;
      }
    }
    if constexpr (kLeavesOut) {
      if (!LeaveOut(highest)) {
        return false;
      }
    }
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const float next = fmaxf(max_[m][half], highest[m][half]);
        // A row that leaves the block out has a highest score of minus infinity and a finite
        // maximum; its weights are those below any minimum.
        const bool none = kLeavesOut ? highest[m][half] == -INFINITY : next == -INFINITY;
        const float factor = none ? 1.0f : Exp2(max_[m][half] - next);
        const float base = none ? INFINITY : next;
        max_[m][half] = next;
        float sum = 0.0f;
#pragma unroll
        for (int32_t n = 0; n < 2 * kKeyTiles; ++n) {
#pragma unroll
          for (int32_t e = 0; e < 2; ++e) {
            float& score = scores[m][n][2 * half + e];
            score = Exp2(fmaf(score, scale_, -base));
            sum += score;
          }
        }
        sum_[m][half] = sum_[m][half] * factor + sum;
#pragma unroll
        for (int32_t t = 0; t < 2 * kTiles; ++t) {
          output_[m][t][2 * half] *= factor;
          output_[m][t][2 * half + 1] *= factor;
        }
      }
    }
    return true;
  }

  // Sets the highest score of rows that leave the block out to minus infinity. False if all rows of
  // the chunk do.
  __device__ bool LeaveOut(float (&highest)[kRowTiles][2]) {
    bool weighs = false;
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t position = first_ + m * 16 + half * 8 + lane_ / 4;
        const bool in_chunk = position >= begin_ && position < end_;
        const bool kept = position < dense_end_ ||
                          highest[m][half] >= fmaxf(max_[m][half], highest[m][half]) + margin_;
        highest[m][half] = kept ? highest[m][half] : -INFINITY;
        weighs = weighs || (in_chunk && kept);
      }
    }
    return __any_sync(kWholeWarp, weighs) != 0;
  }

  __device__ void Mask(int32_t first_token, float (&scores)[kRowTiles][2 * kKeyTiles][4]) const {
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t n = 0; n < 2 * kKeyTiles; ++n) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const int32_t position = first_ + m * 16 + i / 2 * 8 + lane_ / 4;
          const int32_t token = first_token + n * 8 + lane_ % 4 * 2 + i % 2;
          if (token > position || (token >= sink_ && position - token >= local_)) {
            scores[m][n][i] = -INFINITY;
          }
        }
      }
    }
  }

  const std::byte* queries_;
  int32_t lane_;
  int32_t padded_;
  int32_t first_;  // position of the warp's first row
  int32_t sink_;
  int32_t local_;
  float scale_;
  int32_t begin_;  // positions of the chunk's rows
  int32_t end_;
  bool present_;                  // some row of the warp is the chunk's
  int32_t dense_end_;             // rows at positions below it read everything
  float margin_;                  // of the policy's threshold, in powers of two
  int32_t scored_ = 0;            // KV blocks of which some row saw Q K^T
  int32_t weighed_ = 0;           // of these, some row did not leave the block out
  float max_[kRowTiles][2];       // rows r, r + 8 of a tile
  float sum_[kRowTiles][2] = {};  // of this lane's keys
  float output_[kRowTiles][2 * kTiles][4] = {};
};

// The query rows as a page has its keys; zero where the query block has no row of the chunk.
template <int32_t kDim>
__device__ void LoadQueries(const AttendPrefillParams& params, const PrefillTask& task,
                            int32_t head_dim, int32_t padded, std::byte* queries) {
  const int32_t chunks = padded / 8;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < kQueryBlockTokens * chunks;
       i += PrefillTile<kDim>::kThreads) {
    const int32_t token = i / chunks;
    const int32_t d = i % chunks * 8;
    const int32_t position = task.query_block * kQueryBlockTokens + token;
    uint4 eight = {0, 0, 0, 0};
    if (position >= task.first && position < task.end) {
      const int64_t row = task.chunk.first_row + position - task.chunk.first_position;
      const auto* from = static_cast<const uint16_t*>(params.q) +
                         (row * params.q_heads + task.q_head) * head_dim + d;
      if (head_dim % 8 == 0) {
        if (d < head_dim) {
          eight = *reinterpret_cast<const uint4*>(from);
        }
      } else {
        uint32_t words[4] = {};
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
          words[e / 2] |= d + e < head_dim ? uint32_t{from[e]} << (e % 2 * 16) : 0u;
        }
        eight = {words[0], words[1], words[2], words[3]};
      }
    }
    *reinterpret_cast<uint4*>(queries + ElementIndex(token, d, padded) * 2) = eight;
  }
}

template <int32_t kDim, bool kLeavesOut>
__global__ void __launch_bounds__(PrefillTile<kDim>::kThreads)
    AttendPrefillKernel(const __grid_constant__ AttendPrefillParams params) {
  using Tile = PrefillTile<kDim>;
  __shared__ PrefillTask task;  // not in registers, of which the products want all
  const int32_t query_blocks = QueryBlocks(params.batch);
  const auto index = static_cast<int32_t>(blockIdx.x);
  if (index >= query_blocks * params.q_heads) {
    return;
  }
  if (threadIdx.x == 0) {
    FindTask(params, query_blocks, index, task);
  }
  __syncthreads();
  std::byte* queries = SharedMemory();
  std::byte* stages = queries + Tile::kQueryBytes;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const KvPageLayout& layout = task.streams ? params.streaming.layout : params.retrieval.layout;
  const KvPageLayout full = layout.open();
  const int32_t head_dim = layout.head_dim;
  const int32_t padded = layout.padded_head_dim;
  const int32_t newest = task.chunk.first_position + task.chunk.rows - 1;
  PrefillWarp<kDim, kLeavesOut> attention(
      layout, task, task.streams ? params.streaming.sink_tokens : 0,
      task.streams ? params.streaming.local_tokens : 0x3FFFFFFF, params.policy, queries);
  LoadQueries<kDim>(params, task, head_dim, padded, queries);

  // Begins to fill a stage; a group of copies is closed in any case.
  const auto fetch = [&](const BlockVisit& visit, int32_t stage) {
    std::byte* to = stages + stage * 2 * Tile::kPlaneBytes;
    if (visit.read_back) {
      ReadBackPage(layout, task.head, ClosedPage(params.retrieval, task.chunk.slot, visit.block),
                   reinterpret_cast<uint16_t*>(to),
                   reinterpret_cast<uint16_t*>(to + Tile::kPlaneBytes));
      return;
    }
    const std::byte* page = FullPage(params, task, visit.block);
    const std::byte* keys = page + full.key_offset(task.head);
    const std::byte* values = page + full.value_offset(task.head);
    for (int32_t i = thread * 16; i < kPageTokens * padded * 2; i += Tile::kThreads * 16) {
      CopyAsync16(to + i, keys + i);
      CopyAsync16(to + Tile::kPlaneBytes + i, values + i);
    }
  };

  VisitWalk walk(params, task);
  BlockVisit visit;
  BlockVisit next;
  bool more = walk.Next(visit);
  if (more) {
    fetch(visit, 0);
  }
  CommitCopies();
  int32_t stage = 0;
  bool another = false;
  while (more) {
    if constexpr (Tile::kStages > 1) {
      another = walk.Next(next);
      if (another) {
        fetch(next, stage ^ 1);
      }
      CommitCopies();
    }
    WaitCopies<Tile::kStages - 1>();
    __syncthreads();
    std::byte* keys = stages + stage * 2 * Tile::kPlaneBytes;
    std::byte* values = keys + Tile::kPlaneBytes;
    const int32_t tokens = newest + 1 - visit.block * kPageTokens;
    if (tokens < kPageTokens) {
      // Memory behind the newest token may hold anything, and 0 x NaN is NaN.
      for (int32_t i = thread; i < kPageTokens * padded / 8; i += Tile::kThreads) {
        const int32_t token = i % kPageTokens;
        if (token >= tokens) {
          *reinterpret_cast<uint4*>(values + ElementIndex(token, i / kPageTokens * 8, padded) * 2) =
              uint4{0, 0, 0, 0};
        }
      }
      __syncthreads();
    }
    // Of a boxed page the visits are for its own rows and for later ones, each in its turn.
    const int32_t page = attention.page();
    const bool seen = !layout.boxed()   ? page >= visit.block
                      : visit.read_back ? page > visit.block
                                        : page == visit.block;
    if (seen) {
      attention.Attend(visit.block, keys, values);
    }
    __syncthreads();  // the stage may be filled again
    if constexpr (Tile::kStages > 1) {
      stage ^= 1;
    } else {
      another = walk.Next(next);
      if (another) {
        fetch(next, stage);
      }
      CommitCopies();
    }
    visit = next;
    more = another;
  }
  attention.Store(params, task, head_dim);
  if (params.blocks != nullptr && !task.streams) {
    attention.Count(params.blocks);
  }
}

// Launches the instance for a padded head size that kDim holds.
template <int32_t kDim>
void LaunchAttendPrefill(const AttendPrefillParams& params, cudaStream_t stream);

#define LSERVE_INSTANTIATE_ATTEND_PREFILL(kDim)                                                    \
  template <>                                                                                      \
  void LaunchAttendPrefill<kDim>(const AttendPrefillParams& params, cudaStream_t stream) {         \
    const int64_t query_blocks =                                                                   \
        int64_t{params.batch.max_rows} / kQueryBlockTokens + 2 * int64_t{params.batch.max_chunks}; \
    Launch("attend_prefill",                                                                       \
           params.policy.threshold > 0.0f ? AttendPrefillKernel<kDim, true>                        \
                                          : AttendPrefillKernel<kDim, false>,                      \
           dim3(static_cast<unsigned>(query_blocks * params.q_heads)),                             \
           PrefillTile<kDim>::kThreads, PrefillTile<kDim>::kBytes, stream, params);                \
  }

}  // namespace lserve::cuda
