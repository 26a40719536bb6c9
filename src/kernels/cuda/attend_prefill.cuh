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
// Operations: 4 x keys seen x head size, for each row and head, on m16n8k16.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
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

// What a block works on.
struct PrefillTask {
  PrefillChunk chunk;
  int32_t query_block;  // absolute
  int32_t q_head;
  int32_t kv_head;  // of the layer
  int32_t head;     // in its lane
  bool streams;
  int32_t first;  // positions of the chunk's rows in the query block
  int32_t end;
};

// The query blocks of the step.
__device__ inline int32_t QueryBlocks(const BatchView& batch) {
  const int32_t chunks = batch.counts[kChunks];
  if (chunks == 0) {
    return 0;
  }
  const PrefillChunk& last = batch.chunks[chunks - 1];
  return last.first_query_block + (last.first_position + last.rows - 1) / kQueryBlockTokens -
         last.first_position / kQueryBlockTokens + 1;
}

// Task `index` of query_blocks * q_heads: retrieval heads first, query blocks from the last to the
// first, because later ones have more to read; then streaming heads.
__device__ inline void FindTask(const AttendPrefillParams& params, int32_t query_blocks,
                                int32_t index, PrefillTask& task) {
  const BatchView& batch = params.batch;
  const int32_t chunks = batch.counts[kChunks];
  const int32_t retrieval_heads = params.retrieval.layout.heads;
  const int32_t retrieval_tasks = query_blocks * retrieval_heads * params.group;
  task.streams = index >= retrieval_tasks;
  const int32_t heads =
      (task.streams ? params.streaming.layout.heads : retrieval_heads) * params.group;
  const int32_t place = task.streams ? index - retrieval_tasks : index;
  const int32_t block = query_blocks - 1 - place / heads;
  task.head = place % heads / params.group;
  task.kv_head = task.head + (task.streams ? retrieval_heads : 0);
  task.q_head = task.kv_head * params.group + place % heads % params.group;
  int32_t low = 0;  // the last chunk that begins at or before the block
  int32_t high = chunks;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (batch.chunks[middle].first_query_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  task.chunk = batch.chunks[low];
  const int32_t in_chunk = block - task.chunk.first_query_block;
  task.query_block = task.chunk.first_position / kQueryBlockTokens + in_chunk;
  task.first = max(task.chunk.first_position, task.query_block * kQueryBlockTokens);
  task.end =
      min(task.chunk.first_position + task.chunk.rows, (task.query_block + 1) * kQueryBlockTokens);
}

// The ordered KV blocks of a task, from its first row's on: two ranges, or ids.
class BlockWalk {
 public:
  __device__ BlockWalk(const AttendPrefillParams& params, const PrefillTask& task) {
    const int32_t end_block = (task.end - 1) / kPageTokens + 1;
    if (task.streams) {
      const StreamingLane& lane = params.streaming;
      const int32_t oldest = max(0, task.first - lane.local_tokens + 1);
      first_end_ = min(lane.sink_pages, end_block);
      second_begin_ = max(first_end_, oldest / kPageTokens);
      size_ = first_end_ + max(0, end_block - second_begin_);
      return;
    }
    if (params.block_offsets == nullptr) {
      first_end_ = end_block;
      size_ = end_block;
      return;
    }
    const int32_t block = task.chunk.first_query_block + task.query_block -
                          task.chunk.first_position / kQueryBlockTokens;
    const int32_t* offset =
        params.block_offsets + int64_t{block} * params.retrieval.layout.heads + task.head;
    ids_ = params.block_ids + offset[0];
    size_ = offset[1] - offset[0];
    // Blocks that begin after the last row of the chunk hold nothing yet.
    while (size_ > 0 && ids_[size_ - 1] >= end_block) {
      --size_;
    }
  }

  __device__ int32_t size() const { return size_; }
  __device__ int32_t operator[](int32_t i) const {
    return ids_ != nullptr ? ids_[i] : i < first_end_ ? i : second_begin_ + (i - first_end_);
  }

 private:
  const int32_t* ids_ = nullptr;
  int32_t first_end_ = 0;  // blocks [0, first_end), then from second_begin on
  int32_t second_begin_ = 0;
  int32_t size_ = 0;
};

// A visit of a KV block: in full, or as its codes read back.
struct BlockVisit {
  int32_t block;
  bool read_back;
};

// The visits of a task, one after the other.
class VisitWalk {
 public:
  __device__ VisitWalk(const AttendPrefillParams& params, const PrefillTask& task)
      : blocks_(params, task),
        boxed_(!task.streams && params.retrieval.layout.boxed()),
        first_page_(task.first / kPageTokens),
        last_page_((task.end - 1) / kPageTokens) {}

  // False when there are no more.
  __device__ bool Next(BlockVisit& visit) {
    if (index_ == blocks_.size()) {
      return false;
    }
    visit.block = blocks_[index_];
    if (!boxed_) {
      visit.read_back = false;
      ++index_;
      return true;
    }
    // Rows of the block's own page see it in full, later rows read back; a page of the chunk may
    // have both.
    const bool in_full = visit.block >= first_page_ && !second_;
    visit.read_back = !in_full;
    second_ = in_full && visit.block < last_page_;
    index_ += second_ ? 0 : 1;
    return true;
  }

 private:
  BlockWalk blocks_;
  bool boxed_;
  int32_t first_page_;
  int32_t last_page_;
  int32_t index_ = 0;
  bool second_ = false;
};

// Where a KV block lies in full: any page, but of a boxed lane only the chunk's own.
__device__ inline const std::byte* FullPage(const AttendPrefillParams& params,
                                            const PrefillTask& task, int32_t page) {
  const PrefillChunk& chunk = task.chunk;
  const int32_t first_page = chunk.first_position / kPageTokens;
  if (task.streams) {
    const StreamingLane& lane = params.streaming;
    return page >= first_page ? ChunkPage(lane.chunk_pages, lane.layout.page_bytes(), chunk, page)
                              : RingPage(lane, chunk.slot, page);
  }
  const RetrievalLane& lane = params.retrieval;
  if (page == (chunk.first_position + chunk.rows - 1) / kPageTokens) {
    return OpenPage(lane, chunk.slot);
  }
  return lane.layout.boxed()
             ? ChunkPage(lane.chunk_pages, lane.layout.open().page_bytes(), chunk, page)
             : ClosedPage(lane, chunk.slot, page);
}

// Keys and values of a closed boxed page, rounded to bf16, as a page in full has them.
__device__ inline void ReadBackPage(const KvPageLayout& layout, int32_t head, const std::byte* page,
                                    uint16_t* keys, uint16_t* values) {
  const int32_t padded = layout.padded_head_dim;
  const int32_t bits = layout.key_bits();
  const auto threads = static_cast<int32_t>(blockDim.x);
  const auto* box = reinterpret_cast<const uint16_t*>(page + layout.box_offset(head));
  const float cells = 1.0f / static_cast<float>(1 << bits);
  for (auto word = static_cast<int32_t>(threadIdx.x); word < kPageUnits * padded; word += threads) {
    const int32_t lane = word % kWarpLanes;
    const int32_t first_token = word / padded * kUnitTokens + lane / 4;
    const int32_t first_dim = word % padded / kWarpLanes * kWarpLanes + lane % 4 * 2;
    uint32_t planes[4];
#pragma unroll
    for (int32_t plane = 0; plane < 4; ++plane) {
      planes[plane] =
          2 * plane < bits
              ? reinterpret_cast<const uint32_t*>(page + layout.codes_offset(head, plane))[word]
              : 0u;
    }
#pragma unroll
    for (int32_t pair = 0; pair < 4; ++pair) {  // registers of tokens r and r + 8
      const int32_t dim = first_dim + pair % 2 * 8 + pair / 2 * 16;
      const float2 lo = UnpackFloat16(*reinterpret_cast<const uint32_t*>(box + dim));
      const float2 hi = UnpackFloat16(*reinterpret_cast<const uint32_t*>(box + padded + dim));
      const float step0 = (hi.x - lo.x) * cells;
      const float step1 = (hi.y - lo.y) * cells;
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t shift = 2 * (pair * 2 + half);
        uint32_t code0 = 0;
        uint32_t code1 = 0;
#pragma unroll
        for (int32_t plane = 0; plane < 4; ++plane) {
          if (2 * plane < bits) {
            code0 = code0 << 2 | (planes[plane] >> shift & 3u);
            code1 = code1 << 2 | (planes[plane] >> (shift + 16) & 3u);
          }
        }
        *reinterpret_cast<uint32_t*>(keys + ElementIndex(first_token + half * 8, dim, padded)) =
            PackBf16(lo.x + (static_cast<float>(code0) + 0.5f) * step0,
                     lo.y + (static_cast<float>(code1) + 0.5f) * step1);
      }
    }
  }
  const auto* grids = reinterpret_cast<const uint32_t*>(page + layout.value_offset(head));
  const auto* codes = reinterpret_cast<const uint32_t*>(page + layout.value_codes_offset(head));
  const int32_t unit_words = padded / 16 * kWarpLanes;  // of four bits
  for (auto word = static_cast<int32_t>(threadIdx.x); word < kPageUnits * unit_words;
       word += threads) {
    const int32_t lane = word % kWarpLanes;
    const int32_t first_dim = word % unit_words / kWarpLanes * 16 + lane / 4;
    const int32_t first_token = word / unit_words * kUnitTokens + lane % 4 * 2;
    const uint32_t lower = bits == 8 ? codes[2 * word] : codes[word];
    const uint32_t upper = bits == 8 ? codes[2 * word + 1] : 0u;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t token = first_token + half * 8 + e;
        const float2 grid = UnpackFloat16(grids[token]);
#pragma unroll
        for (int32_t i = 0; i < 2; ++i) {
          const int32_t shift = 4 * (half * 2 + i) + 16 * e;
          const uint32_t code = (upper >> shift & 15u) << 4 | (lower >> shift & 15u);
          values[ElementIndex(token, first_dim + i * 8, padded)] =
              ToBFloat16(grid.x + static_cast<float>(code) * grid.y).bits;
        }
      }
    }
  }
}

// A warp's rows: queries from shared memory, softmax and output in registers. A padded head size
// below kDim leaves tiles out.
template <int32_t kDim>
class PrefillWarp {
 public:
  using Tile = PrefillTile<kDim>;
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr int32_t kRowTiles = Tile::kRowTiles;
  static constexpr int32_t kKeyTiles = kPageTokens / 16;
  static constexpr bool kExact = kDim <= 128;

  __device__ PrefillWarp(const KvPageLayout& layout, const PrefillTask& task, int32_t sink,
                         int32_t local, const std::byte* queries)
      : queries_(queries),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        padded_(layout.padded_head_dim),
        first_(task.query_block * kQueryBlockTokens +
               static_cast<int32_t>(threadIdx.x) / kWarpLanes * Tile::kWarpRows),
        sink_(sink),
        local_(local),
        scale_(1.4426950408889634f / sqrtf(static_cast<float>(layout.head_dim))) {
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
    Softmax(block * kPageTokens, scores);
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

 private:
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

  // Scores become probabilities relative to the new maximum; earlier sums are scaled to it.
  __device__ void Softmax(int32_t first_token, float (&scores)[kRowTiles][2 * kKeyTiles][4]) {
    const int32_t last_token = first_token + kPageTokens - 1;
    const int32_t last = first_ + Tile::kWarpRows - 1;
    if (last_token > first_ || (last_token >= sink_ && last - first_token >= local_)) {
      Mask(first_token, scores);
    }
#pragma unroll
    for (int32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        float highest = -INFINITY;
#pragma unroll
        for (int32_t n = 0; n < 2 * kKeyTiles; ++n) {
          highest = fmaxf(highest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        }
        const float next = fmaxf(max_[m][half], MaxOverLanes<kOverColumns>(highest) * scale_);
        const float base = next == -INFINITY ? 0.0f : next;
        const float factor = Exp2(max_[m][half] - base);
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

template <int32_t kDim>
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
  PrefillWarp<kDim> attention(layout, task, task.streams ? params.streaming.sink_tokens : 0,
                              task.streams ? params.streaming.local_tokens : 0x3FFFFFFF, queries);
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
}

// Launches the instance for a padded head size that kDim holds.
template <int32_t kDim>
void LaunchAttendPrefill(const AttendPrefillParams& params, cudaStream_t stream);

#define LSERVE_INSTANTIATE_ATTEND_PREFILL(kDim)                                                    \
  template <>                                                                                      \
  void LaunchAttendPrefill<kDim>(const AttendPrefillParams& params, cudaStream_t stream) {         \
    const int64_t query_blocks =                                                                   \
        int64_t{params.batch.max_rows} / kQueryBlockTokens + 2 * int64_t{params.batch.max_chunks}; \
    Launch("attend_prefill", AttendPrefillKernel<kDim>,                                            \
           dim3(static_cast<unsigned>(query_blocks * params.q_heads)),                             \
           PrefillTile<kDim>::kThreads, PrefillTile<kDim>::kBytes, stream, params);                \
  }

}  // namespace lserve::cuda
