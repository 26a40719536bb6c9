// Where prefill attention goes: the tasks of a step, the KV blocks of a task in their order, and
// the pages in which they lie. Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/ops.h"

namespace lserve::cuda {

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
    end_block_ = end_block;
    if (params.block_offsets == nullptr) {
      if (params.policy.threshold > 0.0f) {
        walked_from_ = task.query_block;
        size_ = 2 * (task.query_block + 1);
      } else {
        first_end_ = end_block;
        size_ = end_block;
      }
      return;
    }
    const int32_t block = task.chunk.first_query_block + task.query_block -
                          task.chunk.first_position / kQueryBlockTokens;
    const int32_t* offset =
        params.block_offsets + int64_t{block} * params.retrieval.layout.heads + task.head;
    ids_ = params.block_ids + offset[0];
    size_ = offset[1] - offset[0];
  }

  // The first place from i on whose block the chunk reaches: a block that begins after its last row
  // holds nothing yet.
  __device__ int32_t Reached(int32_t i) const {
    while (i < size_ && (*this)[i] >= end_block_) {
      ++i;
    }
    return i;
  }
  // Whether the chunk reaches the block at place i.
  __device__ bool Reaches(int32_t i) const { return (*this)[i] < end_block_; }
  __device__ int32_t size() const { return size_; }
  // Of a streaming head: blocks [0, sink_end), then from window_begin on.
  __device__ int32_t sink_end() const { return first_end_; }
  __device__ int32_t window_begin() const { return second_begin_; }
  __device__ int32_t operator[](int32_t i) const {
    return ids_ != nullptr     ? ids_[i]
           : walked_from_ >= 0 ? WalkedBlock(walked_from_, i)
           : i < first_end_    ? i
                               : second_begin_ + (i - first_end_);
  }

 private:
  const int32_t* ids_ = nullptr;
  int32_t walked_from_ = -1;  // the query block whose WalkedBlocks these are
  int32_t end_block_ = 0x7FFFFFFF;
  int32_t first_end_ = 0;  // blocks [0, first_end), then from second_begin on
  int32_t second_begin_ = 0;
  int32_t size_ = 0;
};

// The steps of a task whose pages are not boxed: one KV block each, in the order of the walk, or
// two. Two share a step by their places in a list or, without one, by their numbers (2 i and 2 i +
// 1), so that it does not depend on the chunk which do.
inline constexpr int32_t kNoPage = 1 << 24;  // missing from a step: behind every row

template <int32_t kPages>
class StepWalk {
 public:
  __device__ StepWalk(const AttendPrefillParams& params, const PrefillTask& task)
      : blocks_(params, task) {
    int32_t places = blocks_.size();
    while (places > 0 && !blocks_.Reaches(places - 1)) {
      --places;
    }
    places_ = places;
    size_ = (places + kPages - 1) / kPages;
    if constexpr (kPages == 2) {
      if (task.streams) {
        // The sink's steps, then those of the window, which may share one with it.
        sink_end_ = blocks_.sink_end();
        window_begin_ = blocks_.window_begin();
        end_ = (task.end - 1) / kPageTokens + 1;
        sink_steps_ = (sink_end_ + 1) / 2;
        first_step_ = max(sink_steps_, window_begin_ / 2);
        size_ = sink_steps_ + max(0, (end_ + 1) / 2 - first_step_);
      }
    }
  }

  __device__ int32_t size() const { return size_; }
  // The KV block in a slot of a step, or kNoPage.
  __device__ int32_t Page(int32_t step, int32_t slot) const {
    if (end_ > 0) {
      const int32_t of = step < sink_steps_ ? step : first_step_ + step - sink_steps_;
      const int32_t page = of * kPages + slot;
      return page < end_ && (page < sink_end_ || page >= window_begin_) ? page : kNoPage;
    }
    const int32_t place = step * kPages + slot;
    return place < places_ && blocks_.Reaches(place) ? blocks_[place] : kNoPage;
  }

 private:
  BlockWalk blocks_;
  int32_t places_ = 0;
  int32_t size_ = 0;
  int32_t sink_end_ = 0;      // of a streaming head: pages [0, sink_end)
  int32_t window_begin_ = 0;  // and [window_begin, end)
  int32_t end_ = 0;           // or 0
  int32_t sink_steps_ = 0;
  int32_t first_step_ = 0;  // of the window, in pairs of pages
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
        last_page_((task.end - 1) / kPageTokens),
        index_(blocks_.Reached(0)) {}

  // False when there are no more.
  __device__ bool Next(BlockVisit& visit) {
    if (index_ == blocks_.size()) {
      return false;
    }
    visit.block = blocks_[index_];
    if (!boxed_) {
      visit.read_back = false;
      index_ = blocks_.Reached(index_ + 1);
      return true;
    }
    // Rows of the block's own page see it in full, later rows read back; a page of the chunk may
    // have both.
    const bool in_full = visit.block >= first_page_ && !second_;
    visit.read_back = !in_full;
    second_ = in_full && visit.block < last_page_;
    index_ = second_ ? index_ : blocks_.Reached(index_ + 1);
    return true;
  }

 private:
  BlockWalk blocks_;
  bool boxed_;
  int32_t first_page_;
  int32_t last_page_;
  int32_t index_;
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

}  // namespace lserve::cuda
