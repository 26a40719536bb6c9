// RopeAppend: a block takes a decode row or a page of a chunk, for one KV head with its query
// heads. A team of lanes takes a head of a row: each lane eight dims and the eight they turn with.
//
// Bytes: q, k, v in and out once; a page that closes is read again, from the first-level cache.
//
// Hazards. A chunk's first page may begin in the slot's open page, and its last page becomes the
// open page. So one block does everything that touches the open page of a (slot, head), in order:
// close what was full, move the begun page to the pool and finish it, start the new open page.
#include "kernels/cuda/close_page.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 128;
constexpr int32_t kBlocksPerMultiprocessor = 8;

// Where one head of a page in full lies.
struct HeadPlanes {
  __device__ HeadPlanes(std::byte* page, const KvPageLayout& layout, int32_t head)
      : keys(reinterpret_cast<uint16_t*>(page + layout.key_offset(head))),
        values(reinterpret_cast<uint16_t*>(page + layout.value_offset(head))),
        stats(layout.score == PageScore::kMinMax
                  ? reinterpret_cast<uint16_t*>(page + layout.stats_offset(head))
                  : nullptr) {}
  uint16_t* keys;
  uint16_t* values;
  uint16_t* stats;  // null without minima and maxima
};

// Eight elements from `from` on, of which `count` exist; in one access where `whole`. Past the
// first-level cache, which may hold what a decode row found before its wait.
__device__ void LoadEight(const uint16_t* from, int32_t count, bool whole, float (&x)[8]) {
  if (whole) {
    EightElements eight;
    eight.packed = __ldcg(reinterpret_cast<const uint4*>(from));
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      x[i] = Bf16(eight.bits[i]);
    }
    return;
  }
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) {
    x[i] = i < count ? Bf16(__ldcg(from + i)) : 0.0f;
  }
}

// Dims [first, first + count) of a head's row, count at most 8, rounded. `unit_order`: a token of a
// page; else a row of q.
__device__ void StoreEight(const float (&x)[8], uint16_t* to, int32_t token, int32_t first,
                           int32_t count, bool whole, bool unit_order, int32_t padded) {
  if (whole) {
    const uint4 packed = {PackBf16(x[0], x[1]), PackBf16(x[2], x[3]), PackBf16(x[4], x[5]),
                          PackBf16(x[6], x[7])};
    uint16_t* place = to + (unit_order ? ElementIndex(token, first, padded) : first);
    *reinterpret_cast<uint4*>(place) = packed;
    return;
  }
#pragma unroll
  for (int32_t i = 0; i < 8; ++i) {
    if (i < count) {
      const int32_t place = unit_order ? ElementIndex(token, first + i, padded) : first + i;
      to[place] = ToBFloat16(x[i]).bits;
    }
  }
}

class Appender {
 public:
  __device__ explicit Appender(const RopeAppendParams& params, ClosePageShared& shared)
      : params_(params), shared_(shared) {
    const int32_t half = params.head_dim / 2;
    team_lanes_ = half <= 32 ? 4 : half <= 64 ? 8 : 16;
    whole_ = half % 8 == 0;
    padded_ = PaddedHeadDim(params.head_dim);
    group_ = params.q_heads / params.kv_heads;
  }

  // Finds the row's pages, which the host has said, before it waits for q, k and v, and goes
  // through what is to be done once without storing: the code is then at hand.
  __device__ void DecodeRow(int32_t row, int32_t kv_head) const {
    const int32_t slot = params_.batch.row_slot[row];
    const int32_t position = params_.batch.row_position[row];
    const int32_t page = position / kPageTokens;
    const int32_t token = position % kPageTokens;
    const int32_t retrieval_heads = params_.retrieval.layout.heads;
    const bool streams = kv_head >= retrieval_heads;
    const RetrievalLane& lane = params_.retrieval;
    std::byte* newest = streams ? RingPage(params_.streaming, slot, page) : OpenPage(lane, slot);
    const HeadPlanes planes(newest, streams ? params_.streaming.layout : lane.layout.open(),
                            streams ? kv_head - retrieval_heads : kv_head);
    PrefetchRow(row, kv_head, token, planes);
#pragma unroll 1
    for (int32_t turn = 0; turn < 2; ++turn) {
      const bool stores = turn == 1;
      if (stores) {
        WaitForEarlierKernels();
        if (!streams && token == 0 && page > 0) {
          ClosePage(lane.layout, kv_head, newest, ClosedPage(lane, slot, page - 1), shared_);
        }
      }
      AppendRows(row, 1, kv_head, token, planes, stores);
    }
  }

  // `index` counts the chunk's pages. The block of the first page does the last one too, if the
  // last is another; the last page's own block finds nothing to do.
  __device__ void RetrievalPage(const PrefillChunk& chunk, int32_t index, int32_t head) const {
    const RetrievalLane& lane = params_.retrieval;
    const KvPageLayout layout = lane.layout.open();
    const int32_t first_page = chunk.first_position / kPageTokens;
    const int32_t last_page = (chunk.first_position + chunk.rows - 1) / kPageTokens;
    const int32_t page = first_page + index;
    std::byte* open = OpenPage(lane, chunk.slot);
    const bool begun = chunk.first_position % kPageTokens != 0;
    if (index == 0 && !begun && page > 0) {
      ClosePage(lane.layout, head, open, ClosedPage(lane, chunk.slot, page - 1), shared_);
    }
    if (page < last_page) {
      // Where a page that closes in the chunk's own step is filled: among the chunk pages if
      // attention needs it in full, else in its place in the pool.
      std::byte* closed = ClosedPage(lane, chunk.slot, page);
      std::byte* filled = lane.layout.boxed()
                              ? ChunkPage(lane.chunk_pages, layout.page_bytes(), chunk, page)
                              : closed;
      if (index == 0 && begun) {
        CopyHead(open, filled, layout, head);
        __syncthreads();
      }
      AppendPart(chunk, page, head, HeadPlanes(filled, layout, head));
      ClosePage(lane.layout, head, filled, closed, shared_);
    }
    if (index == 0) {
      AppendPart(chunk, last_page, head, HeadPlanes(open, layout, head));
    }
  }

  __device__ void StreamingPage(const PrefillChunk& chunk, int32_t index, int32_t kv_head) const {
    const StreamingLane& lane = params_.streaming;
    const int32_t head = kv_head - params_.retrieval.layout.heads;
    const int32_t page = chunk.first_position / kPageTokens + index;
    std::byte* to = ChunkPage(lane.chunk_pages, lane.layout.page_bytes(), chunk, page);
    if (index == 0 && chunk.first_position % kPageTokens != 0) {
      CopyHead(RingPage(lane, chunk.slot, page), to, lane.layout, head);
      __syncthreads();
    }
    AppendPart(chunk, page, kv_head, HeadPlanes(to, lane.layout, head));
  }

 private:
  // The lines that AppendRows reads and writes for one row. Between two uses of any of them a
  // layer's weights go by, so that each would wait for memory and for the translation of its
  // address, the stores at the kernel's end.
  __device__ void PrefetchRow(int32_t row, int32_t kv_head, int32_t token,
                              const HeadPlanes& planes) const {
    const int32_t dim = params_.head_dim;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < (group_ + 2) * (padded_ / 8);
         i += kThreads) {
      const int32_t which = i / (padded_ / 8);
      const int32_t d = min(i % (padded_ / 8) * 8, dim - 1);
      const bool is_query = which < group_;
      const int32_t head = HeadOfQkv(which, kv_head);
      PrefetchToL2(static_cast<const uint16_t*>(params_.qkv) + row * QkvStride() +
                   int64_t{head} * dim + d);
      if (is_query) {
        PrefetchToL2(static_cast<uint16_t*>(params_.q) +
                     (int64_t{row} * params_.q_heads + head) * dim + d);
        PrefetchToL2(params_.angles + int64_t{row} * dim + d);
        continue;
      }
      PrefetchToL2((which == group_ ? planes.keys : planes.values) +
                   ElementIndex(token, d, padded_));
      if (planes.stats != nullptr) {
        PrefetchToL2(planes.stats + StatsIndex(token / kUnitTokens, d, which - group_));
      }
    }
  }

  // Elements of a row of qkv, and which of its heads is head `which` of a KV head's.
  __device__ int64_t QkvStride() const {
    return (int64_t{params_.q_heads} + 2 * params_.kv_heads) * params_.head_dim;
  }
  __device__ int32_t HeadOfQkv(int32_t which, int32_t kv_head) const {
    return which < group_ ? kv_head * group_ + which
                          : params_.q_heads + (which - group_) * params_.kv_heads + kv_head;
  }

  // The rows of a chunk that lie in `page`.
  __device__ void AppendPart(const PrefillChunk& chunk, int32_t page, int32_t kv_head,
                             const HeadPlanes& planes) const {
    const int32_t begin = max(chunk.first_position, page * kPageTokens);
    const int32_t end = min(chunk.first_position + chunk.rows, (page + 1) * kPageTokens);
    AppendRows(chunk.first_row + begin - chunk.first_position, end - begin, kv_head,
               begin % kPageTokens, planes);
  }

  // Rows [row, row + rows), which begin at `token` of one page. Ends with a barrier.
  __device__ void AppendRows(int32_t row, int32_t rows, int32_t kv_head, int32_t token,
                             const HeadPlanes& planes, bool stores = true) const {
    const int32_t teams = kThreads / team_lanes_;
    const int32_t team = static_cast<int32_t>(threadIdx.x) / team_lanes_;
    const int32_t heads = group_ + 2;  // the group's queries, key, value
    for (int32_t first = 0; first < rows * heads; first += teams) {
      const int32_t item = first + team;
      AppendHead(item < rows * heads, row + item / heads, item % heads, kv_head,
                 token + item / heads, planes, stores);
    }
    __syncthreads();
    if (planes.stats != nullptr && stores) {
      UpdateStats(planes, token, token + rows);
      __syncthreads();
    }
  }

  // Head `which` (of the group's queries, key, value) of a row. All lanes come here; those of a
  // team that is not active only take part in the exchange.
  __device__ void AppendHead(bool active, int32_t row, int32_t which, int32_t kv_head,
                             int32_t token, const HeadPlanes& planes, bool stores) const {
    const int32_t dim = params_.head_dim;
    const int32_t half = dim / 2;
    const bool is_query = which < group_;
    const bool is_value = which == group_ + 1;
    const int32_t head = HeadOfQkv(which, kv_head);
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % team_lanes_;
    const int32_t first = lane * 8;
    const int32_t count = min(8, half - first);
    active = active && count > 0;

    float low[8] = {};
    float high[8] = {};
    float2 turns[8] = {};
    if (active) {
      if (!is_value) {  // asked for together with what they turn
        const float* angles = params_.angles + int64_t{row} * dim + 2 * first;
#pragma unroll
        for (int32_t i = 0; i < 8; ++i) {
          if (i < count) {
            turns[i] = __ldcg(reinterpret_cast<const float2*>(angles) + i);
          }
        }
      }
      const auto* source = static_cast<const uint16_t*>(params_.qkv) + row * QkvStride() +
                           int64_t{head} * dim + first;
      LoadEight(source, count, whole_, low);
      LoadEight(source + half, count, whole_, high);
      if (params_.bias != nullptr) {
        AddBias(static_cast<const uint16_t*>(params_.bias) + int64_t{head} * dim + first, count,
                low, high);
      }
    }
    const void* norm = is_query ? params_.q_norm : params_.k_norm;
    if (params_.q_norm != nullptr || params_.k_norm != nullptr) {
      float squares = 0.0f;
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) {
        squares += low[i] * low[i] + high[i] * high[i];
      }
      for (int32_t bit = 1; bit < team_lanes_; bit *= 2) {
        squares += __shfl_xor_sync(kWholeWarp, squares, bit);
      }
      if (active && norm != nullptr && !is_value) {
        const float inverse =
            1.0f / sqrtf(squares / static_cast<float>(dim) + params_.norm_epsilon);
        Scale(static_cast<const uint16_t*>(norm) + first, count, inverse, low, high);
      }
    }
    if (!active) {
      return;
    }
    if (!is_value) {
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) {
        const float x = low[i];
        const float y = high[i];
        low[i] = x * turns[i].x - y * turns[i].y;
        high[i] = y * turns[i].x + x * turns[i].y;
      }
    }
    uint16_t* to =
        is_query ? static_cast<uint16_t*>(params_.q) + (int64_t{row} * params_.q_heads + head) * dim
                 : (is_value ? planes.values : planes.keys);
    if (!stores) {
      return;
    }
    StoreEight(low, to, token, first, count, whole_, !is_query, padded_);
    StoreEight(high, to, token, half + first, count, whole_, !is_query, padded_);
    if (!is_query) {
      for (int32_t d = dim + lane; d < padded_; d += DivideUp(half, 8)) {
        to[ElementIndex(token, d, padded_)] = 0;
      }
    }
  }

  __device__ void AddBias(const uint16_t* bias, int32_t count, float (&low)[8],
                          float (&high)[8]) const {
    float x[8];
    float y[8];
    LoadEight(bias, count, whole_, x);
    LoadEight(bias + params_.head_dim / 2, count, whole_, y);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      low[i] += x[i];
      high[i] += y[i];
    }
  }

  __device__ void Scale(const uint16_t* weight, int32_t count, float inverse, float (&low)[8],
                        float (&high)[8]) const {
    float x[8];
    float y[8];
    LoadEight(weight, count, whole_, x);
    LoadEight(weight + params_.head_dim / 2, count, whole_, y);
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      low[i] *= inverse * x[i];
      high[i] *= inverse * y[i];
    }
  }

  // Takes the keys of tokens [begin, end) into the statistics of their logical pages; a logical
  // page's first token starts them, so that nothing of a recycled page survives.
  __device__ void UpdateStats(const HeadPlanes& planes, int32_t begin, int32_t end) const {
    const int32_t first_logical = begin / kUnitTokens;
    const int32_t logical_pages = DivideUp(end, kUnitTokens) - first_logical;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < logical_pages * padded_;
         i += kThreads) {
      const int32_t logical = first_logical + i / padded_;
      const int32_t d = i % padded_;
      const int32_t first = max(begin, logical * kUnitTokens);
      const int32_t last = min(end, (logical + 1) * kUnitTokens) - 1;
      uint16_t* minimum = planes.stats + StatsIndex(logical, d, 0);
      uint16_t* maximum = planes.stats + StatsIndex(logical, d, 1);
      const bool fresh = first % kUnitTokens == 0;
      uint16_t least = fresh ? planes.keys[ElementIndex(first, d, padded_)] : *minimum;
      uint16_t most = fresh ? least : *maximum;
      for (int32_t token = first; token <= last; ++token) {
        const uint16_t key = planes.keys[ElementIndex(token, d, padded_)];
        least = Bf16(key) < Bf16(least) ? key : least;
        most = Bf16(key) > Bf16(most) ? key : most;
      }
      *minimum = least;
      *maximum = most;
    }
  }

  const RopeAppendParams& params_;
  ClosePageShared& shared_;
  int32_t team_lanes_;  // a power of two
  bool whole_;          // eight dims are one access
  int32_t padded_;
  int32_t group_;
};

__device__ int32_t PagesOf(const PrefillChunk& chunk) {
  return (chunk.first_position + chunk.rows - 1) / kPageTokens -
         chunk.first_position / kPageTokens + 1;
}

// A step without prompt rows: a block a KV head and row.
__global__ void __launch_bounds__(kThreads)
    RopeAppendDecodeKernel(const __grid_constant__ RopeAppendParams params) {
  __shared__ ClosePageShared shared;
  LetNextKernelStart();
  const auto row = static_cast<int32_t>(blockIdx.y);
  if (row < params.batch.counts[kDecodeRows]) {
    Appender(params, shared).DecodeRow(row, static_cast<int32_t>(blockIdx.x));
  }
  WaitForEarlierKernels();
}

// Items: decode rows, then the chunks' pages in order, each with every KV head.
__global__ void __launch_bounds__(kThreads)
    RopeAppendKernel(const __grid_constant__ RopeAppendParams params) {
  __shared__ ClosePageShared shared;
  LetNextKernelStart();
  const Appender appender(params, shared);
  const BatchView& batch = params.batch;
  const int32_t decode_rows = batch.counts[kDecodeRows];
  const int32_t chunks = batch.counts[kChunks];
  const int32_t heads = params.kv_heads;
  WaitForEarlierKernels();
  int32_t c = 0;
  int32_t chunk_first = decode_rows;  // the item row of the chunk's first page
  for (int64_t item = blockIdx.x;; item += gridDim.x) {
    const auto place = static_cast<int32_t>(item / heads);
    const auto head = static_cast<int32_t>(item % heads);
    if (place < decode_rows) {
      appender.DecodeRow(place, head);
      continue;
    }
    while (c < chunks && place >= chunk_first + PagesOf(batch.chunks[c])) {
      chunk_first += PagesOf(batch.chunks[c++]);
    }
    if (c == chunks) {
      return;
    }
    if (head < params.retrieval.layout.heads) {
      appender.RetrievalPage(batch.chunks[c], place - chunk_first, head);
    } else {
      appender.StreamingPage(batch.chunks[c], place - chunk_first, head);
    }
  }
}

}  // namespace

void RopeAppend(const RopeAppendParams& params, cudaStream_t stream) {
  const BatchView& batch = params.batch;
  if (batch.max_chunks == 0) {
    LaunchDependent(
        "rope_append", RopeAppendDecodeKernel,
        dim3(static_cast<unsigned>(params.kv_heads), static_cast<unsigned>(batch.max_decode_rows)),
        kThreads, 0, stream, params);
    return;
  }
  const int64_t chunk_pages = batch.max_rows / kPageTokens + 2 * int64_t{batch.max_chunks};
  const int64_t items = (batch.max_decode_rows + chunk_pages) * params.kv_heads;
  LaunchDependent("rope_append", RopeAppendKernel,
                  dim3(static_cast<unsigned>(PersistentBlocks(items, kBlocksPerMultiprocessor))),
                  kThreads, 0, stream, params);
}

const char* RopeAppendVariant(const RopeAppendParams& /*params*/) { return "simt"; }

}  // namespace lserve::cuda
