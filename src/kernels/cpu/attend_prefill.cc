// Prefill attention: the plan (which tasks), the walk over block lists, and the copies in and out.
// The arithmetic is a kernel's (attend_prefill_kernel.h).
//
// A task is a query block (128 tokens at an absolute multiple) of a chunk and a KV head: the rows
// of the group's query heads share every block of keys and values. Blocks are grouped into steps by
// their index in the list, which depends on the query block alone, never on the chunk. Rows are
// tiled page by page, because rows of a boxed page see it in full and later rows see its codes.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "base/check.h"
#include "kernels/cpu/attend_prefill_kernel.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/page_codes.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/variant.h"

namespace lserve::cpu {
namespace {

constexpr int32_t kUnbounded = std::numeric_limits<int32_t>::max() / 2;

struct PrefillTask {
  int32_t chunk;
  int32_t head;         // KV head of the layer: retrieval first, then streaming
  int32_t query_block;  // absolute
  int32_t work;         // blocks x rows, for the order
};

int32_t KvHeads(const AttendPrefillParams& params) {
  return params.retrieval.layout.heads + params.streaming.layout.heads;
}

// A chunk of n rows touches at most n / 128 + 2 query blocks.
int64_t MaxTasks(const AttendPrefillParams& params) {
  return (int64_t{params.batch.max_rows} / kQueryBlockTokens +
          2 * int64_t{params.batch.max_chunks}) *
         KvHeads(params);
}

// The rows of a task: positions [first, end) of its chunk.
struct TaskRows {
  int32_t first;
  int32_t end;
};

TaskRows RowsOf(const PrefillChunk& chunk, int32_t query_block) {
  return {std::max(chunk.first_position, query_block * kQueryBlockTokens),
          std::min(chunk.first_position + chunk.rows, (query_block + 1) * kQueryBlockTokens)};
}

// The ordered list of KV blocks that a task walks: WalkedBlock's, two ranges, or ids.
class BlockList {
 public:
  BlockList(const AttendPrefillParams& params, const PrefillTask& task) {
    const PrefillChunk& chunk = params.batch.chunks[task.chunk];
    const int32_t end_block = (RowsOf(chunk, task.query_block).end - 1) / kPageTokens + 1;
    const int32_t retrieval_heads = params.retrieval.layout.heads;
    if (task.head < retrieval_heads) {
      if (params.block_offsets == nullptr) {
        first_end_ = end_block;
        size_ = end_block;
        if (params.policy.threshold > 0.0f) {
          walked_query_block_ = task.query_block;
          size_ = 2 * (task.query_block + 1);  // those after the chunk's last row are passed over
        }
        return;
      }
      const int32_t block =
          chunk.first_query_block + task.query_block - chunk.first_position / kQueryBlockTokens;
      const int32_t* offset = params.block_offsets + block * retrieval_heads + task.head;
      ids_ = params.block_ids + offset[0];
      size_ = offset[1] - offset[0];
      // Blocks that begin after the last row of the chunk hold nothing yet.
      while (size_ > 0 && ids_[size_ - 1] >= end_block) {
        --size_;
      }
      return;
    }
    const StreamingLane& lane = params.streaming;
    const int32_t oldest =
        std::max(0, task.query_block * kQueryBlockTokens - lane.local_tokens + 1);
    first_end_ = std::min(lane.sink_pages, end_block);
    second_begin_ = std::max(first_end_, oldest / kPageTokens);
    size_ = first_end_ + std::max(0, end_block - second_begin_);
  }

  int32_t size() const { return size_; }
  int32_t operator[](int32_t i) const {
    return walked_query_block_ >= 0 ? WalkedBlock(walked_query_block_, i)
           : ids_ != nullptr        ? ids_[i]
           : i < first_end_         ? i
                                    : second_begin_ + (i - first_end_);
  }

 private:
  int32_t walked_query_block_ = -1;  // of WalkedBlock, else -1
  const int32_t* ids_ = nullptr;
  int32_t first_end_ = 0;  // blocks [0, first_end), then from second_begin on
  int32_t second_begin_ = 0;
  int32_t size_ = 0;
};

// Writes the tasks of the step, the most work first. Returns their number.
int64_t PlanTasks(const AttendPrefillParams& params, PrefillTask* tasks) {
  int64_t count = 0;
  for (int32_t c = 0; c < params.batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = params.batch.chunks[c];
    const int32_t begin = chunk.first_position / kQueryBlockTokens;
    const int32_t last = (chunk.first_position + chunk.rows - 1) / kQueryBlockTokens;
    for (int32_t head = 0; head < KvHeads(params); ++head) {
      for (int32_t block = begin; block <= last; ++block) {
        PrefillTask task{c, head, block, 0};
        const TaskRows rows = RowsOf(chunk, block);
        const int64_t work = int64_t{BlockList(params, task).size()} * (rows.end - rows.first);
        task.work = static_cast<int32_t>(std::min<int64_t>(work, kUnbounded));
        tasks[count++] = task;
      }
    }
  }
  std::sort(tasks, tasks + count, [](const PrefillTask& a, const PrefillTask& b) {
    return a.work != b.work ? a.work > b.work
                            : std::pair(a.head, a.query_block) < std::pair(b.head, b.query_block);
  });
  return count;
}

// A thread's scratch, laid out for a full query block.
struct PrefillScratch {
  uint16_t* q;
  int32_t* positions;
  float* thresholds;  // PrefillTile's
  float* row_max;
  float* row_sum;
  float* output;
  float* scores;
  uint16_t* probabilities;
  float* staging;
  uint16_t* tail;       // values of the newest page, zero where there is no token yet
  uint16_t* read_back;  // [kStepBlocks][keys, values][64 * padded head dim], for boxed pages
};

// Carves the parts off `memory`; with null it only counts the bytes.
int64_t LayOut(const AttendPrefillParams& params, std::byte* memory, PrefillScratch* scratch) {
  const int64_t dims = params.retrieval.layout.heads > 0 ? params.retrieval.layout.padded_head_dim
                                                         : params.streaming.layout.padded_head_dim;
  const int64_t rows =
      (int64_t{params.group} * kQueryBlockTokens + kRowTile - 1) / kRowTile * kRowTile;
  int64_t offset = 0;
  const auto take = [&](auto*& part, int64_t count) {
    using T = std::remove_reference_t<decltype(*part)>;
    if (memory != nullptr) {
      part = reinterpret_cast<T*>(memory + offset);
    }
    offset += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  };
  take(scratch->q, rows * dims);
  take(scratch->positions, rows);
  take(scratch->thresholds, rows);
  take(scratch->row_max, rows);
  take(scratch->row_sum, rows);
  take(scratch->output, rows * dims);
  take(scratch->scores, int64_t{kRowTile} * kScoreStride);
  take(scratch->probabilities, int64_t{kRowTile} * kProbabilityStride);
  take(scratch->staging, kRowTile * dims);
  take(scratch->tail, kPageTokens * dims);
  take(scratch->read_back, params.retrieval.layout.boxed()
                               ? int64_t{kStepBlocks} * 2 * kPageTokens * dims
                               : int64_t{0});
  return offset;
}

// One task on one thread.
class PrefillWorker {
 public:
  PrefillWorker(const AttendPrefillParams& params, const PrefillVariant& variant, Team& team)
      : params_(params), variant_(variant) {
    LayOut(params, team.Scratch(LayOut(params, nullptr, &scratch_)), &scratch_);
  }

  // What retrieval heads read so far.
  const PrefillBlocks& blocks() const { return blocks_; }

  void Run(const PrefillTask& task) {
    const int32_t retrieval_heads = params_.retrieval.layout.heads;
    streams_ = task.head >= retrieval_heads;
    leaves_out_ = !streams_ && params_.policy.threshold > 0.0f;
    layout_ = streams_ ? params_.streaming.layout : params_.retrieval.layout;
    head_ = streams_ ? task.head - retrieval_heads : task.head;
    chunk_ = &params_.batch.chunks[task.chunk];
    SplitRows(RowsOf(*chunk_, task.query_block));
    tail_page_ = -1;
    LoadQueries(task.head);

    const BlockList list(params_, task);
    for (int32_t begin = 0; begin < list.size(); begin += kStepBlocks) {
      const int32_t size = std::min(kStepBlocks, list.size() - begin);
      std::array<int32_t, kStepBlocks> pages;
      for (int32_t i = 0; i < size; ++i) {
        pages[static_cast<size_t>(i)] = list[begin + i];
      }
      Step({pages.data(), static_cast<size_t>(size)});
    }
    StoreOutput(task.head);
  }

 private:
  // The task's rows in one page: positions [first, end), head by head, in whole tiles from scratch
  // row `first_row` on.
  struct PageRows {
    int32_t first;
    int32_t end;
    int32_t first_row;
    int32_t tile_rows;
  };

  int64_t dims() const { return layout_.padded_head_dim; }

  void SplitRows(TaskRows rows) {
    tile_rows_ = 0;
    page_count_ = 0;
    for (int32_t first = rows.first; first < rows.end;) {
      const int32_t end = std::min(rows.end, (first / kPageTokens + 1) * kPageTokens);
      const int32_t count = (end - first) * params_.group;
      const int32_t tile_rows = (count + kRowTile - 1) / kRowTile * kRowTile;
      pages_[static_cast<size_t>(page_count_++)] = {first, end, tile_rows_, tile_rows};
      tile_rows_ += tile_rows;
      first = end;
    }
  }

  // Calls visit(scratch row, position, offset of its head_dim elements in q and output) for every
  // row of the group's query heads.
  template <typename Visit>
  void ForRows(int32_t kv_head, Visit visit) const {
    for (int32_t page = 0; page < page_count_; ++page) {
      const PageRows& part = pages_[static_cast<size_t>(page)];
      int32_t row = part.first_row;
      for (int32_t g = 0; g < params_.group; ++g) {
        const int64_t q_head = int64_t{kv_head} * params_.group + g;
        for (int32_t position = part.first; position < part.end; ++position, ++row) {
          const int64_t batch_row = chunk_->first_row + (position - chunk_->first_position);
          visit(row, position, (batch_row * params_.q_heads + q_head) * layout_.head_dim);
        }
      }
    }
  }

  // Copies the query rows, padded with zeros to whole tiles and dims.
  void LoadQueries(int32_t kv_head) {
    std::memset(scratch_.q, 0, static_cast<size_t>(tile_rows_ * dims()) * 2);
    for (int32_t page = 0; page < page_count_; ++page) {
      const PageRows& part = pages_[static_cast<size_t>(page)];
      std::fill_n(scratch_.positions + part.first_row, part.tile_rows, part.end - 1);
    }
    const float threshold = std::log2(params_.policy.threshold);
    std::fill_n(scratch_.thresholds, tile_rows_, std::numeric_limits<float>::infinity());
    const auto* source = static_cast<const uint16_t*>(params_.q);
    ForRows(kv_head, [&](int32_t row, int32_t position, int64_t offset) {
      std::memcpy(scratch_.q + row * dims(), source + offset,
                  static_cast<size_t>(layout_.head_dim) * 2);
      scratch_.positions[row] = position;
      scratch_.thresholds[row] = position < params_.policy.dense_tokens
                                     ? -std::numeric_limits<float>::infinity()
                                     : threshold;
    });
    std::fill_n(scratch_.row_max, tile_rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(scratch_.row_sum, tile_rows_, 0.0f);
    std::fill_n(scratch_.output, tile_rows_ * dims(), 0.0f);
  }

  std::byte* ClosedPage(int32_t page) const {
    const RetrievalLane& lane = params_.retrieval;
    const int64_t slot = chunk_->slot;
    return lane.pages + lane.table[slot * lane.max_pages + page] * layout_.page_bytes();
  }

  // Where the page lies in full: any page, but of a boxed lane only the chunk's own.
  const std::byte* FullPage(int32_t page) const {
    const int64_t bytes = layout_.open().page_bytes();
    const int64_t slot = chunk_->slot;
    const int32_t first_page = chunk_->first_position / kPageTokens;
    if (streams_) {
      const StreamingLane& lane = params_.streaming;
      if (page >= first_page) {
        return lane.chunk_pages + (chunk_->first_chunk_page + page - first_page) * bytes;
      }
      const int32_t* table = lane.table + slot * (lane.sink_pages + lane.ring_pages);
      return lane.pages + table[StreamingRingSlot(lane, page)] * bytes;
    }
    const RetrievalLane& lane = params_.retrieval;
    if (page == (chunk_->first_position + chunk_->rows - 1) / kPageTokens) {
      return lane.open + slot * bytes;
    }
    return layout_.boxed()
               ? lane.chunk_pages + (chunk_->first_chunk_page + page - first_page) * bytes
               : ClosedPage(page);
  }

  PrefillBlock FullBlock(int32_t page) {
    const KvPageLayout layout = layout_.open();
    const std::byte* data = FullPage(page);
    PrefillBlock block;
    block.keys = reinterpret_cast<const uint16_t*>(data + layout.key_offset(head_));
    block.values = reinterpret_cast<const uint16_t*>(data + layout.value_offset(head_));
    block.first_position = page * kPageTokens;
    block.edge = false;
    const int32_t tokens = chunk_->first_position + chunk_->rows - block.first_position;
    if (tokens < kPageTokens) {
      // Memory behind the newest token may hold anything, and 0 x NaN is NaN.
      if (tail_page_ != page) {
        CopyTail(block.values, tokens);
        tail_page_ = page;
      }
      block.values = scratch_.tail;
    }
    return block;
  }

  // A closed boxed page, read back into place `place` of the step's scratch.
  PrefillBlock ReadBackBlock(int32_t page, int64_t place) {
    uint16_t* keys = scratch_.read_back + place * 2 * kPageTokens * dims();
    uint16_t* values = keys + kPageTokens * dims();
    ReadBackUnits(layout_, HeadCodes(layout_, head_, ClosedPage(page)), 0,
                  kPageTokens / kUnitTokens, keys, values);
    return {keys, values, page * kPageTokens, false};
  }

  void CopyTail(const uint16_t* values, int32_t tokens) {
    const int64_t pair = 2 * dims();
    const int32_t pairs = (tokens + 1) / 2;
    std::memcpy(scratch_.tail, values, static_cast<size_t>(pairs * pair) * 2);
    std::memset(scratch_.tail + pairs * pair, 0,
                static_cast<size_t>((kPageTokens / 2 - pairs) * pair) * 2);
    if (tokens % 2 != 0) {
      for (int32_t d = 0; d < dims(); ++d) {
        scratch_.tail[ValueIndex(tokens, d, layout_.padded_head_dim)] = 0;
      }
    }
  }

  void Step(std::span<const int32_t> pages) {
    std::array<PrefillBlock, kStepBlocks> read_back;
    std::array<PrefillBlock, kStepBlocks> seen;
    std::array<bool, kStepBlocks> found{};
    const int32_t sink = streams_ ? params_.streaming.sink_tokens : 0;
    const int32_t local = streams_ ? params_.streaming.local_tokens : kUnbounded;
    for (int32_t begin = 0; begin < tile_rows_; begin += kRowTile) {
      const int32_t* positions = scratch_.positions + begin;
      const auto [lowest, highest] = std::minmax_element(positions, positions + kRowTile);
      int32_t count = 0;
      for (size_t i = 0; i < pages.size(); ++i) {
        const int32_t first = pages[i] * kPageTokens;
        const int32_t last = first + kPageTokens - 1;
        if (first > *highest || (first >= sink && *lowest - last >= local)) {
          continue;  // no row of the tile sees a token of it, and it may be gone
        }
        PrefillBlock& block = seen[static_cast<size_t>(count++)];
        if (layout_.boxed() && pages[i] != *lowest / kPageTokens) {
          if (!found[i]) {
            read_back[i] = ReadBackBlock(pages[i], static_cast<int64_t>(i));
            found[i] = true;
          }
          block = read_back[i];
        } else {
          block = FullBlock(pages[i]);
        }
        block.edge = last > *lowest || (last >= sink && *highest - first >= local);
      }
      if (count == 0) {
        continue;
      }
      PrefillTile tile;
      tile.q = scratch_.q + begin * dims();
      tile.positions = positions;
      tile.blocks = seen.data();
      tile.block_count = count;
      tile.padded_head_dim = layout_.padded_head_dim;
      tile.sink_tokens = sink;
      tile.local_tokens = local;
      tile.scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(layout_.head_dim));
      tile.thresholds = leaves_out_ ? scratch_.thresholds + begin : nullptr;
      tile.row_max = scratch_.row_max + begin;
      tile.row_sum = scratch_.row_sum + begin;
      tile.output = scratch_.output + begin * dims();
      tile.scores = scratch_.scores;
      tile.probabilities = scratch_.probabilities;
      tile.staging = scratch_.staging;
      const int32_t weighed = variant_.run(tile);
      if (!streams_) {
        blocks_.scored += count;
        blocks_.weighed += weighed;
      }
    }
  }

  void StoreOutput(int32_t kv_head) {
    auto* output = static_cast<BFloat16*>(params_.output);
    ForRows(kv_head, [&](int32_t row, int32_t /*position*/, int64_t offset) {
      const float* from = scratch_.output + row * dims();
      const float inverse = 1.0f / scratch_.row_sum[row];
      for (int64_t d = 0; d < layout_.head_dim; ++d) {
        output[offset + d] = ToBFloat16(from[d] * inverse);
      }
    });
  }

  const AttendPrefillParams& params_;
  const PrefillVariant& variant_;
  PrefillScratch scratch_{};
  KvPageLayout layout_;  // of the task's lane
  const PrefillChunk* chunk_ = nullptr;
  bool streams_ = false;
  bool leaves_out_ = false;  // its rows may leave blocks out
  int32_t head_ = 0;         // in its lane
  std::array<PageRows, kQueryBlockTokens / kPageTokens> pages_{};
  int32_t page_count_ = 0;
  int32_t tile_rows_ = 0;  // query rows of all heads of the group and all pages
  int32_t tail_page_ = -1;
  PrefillBlocks blocks_;
};

}  // namespace

std::span<const PrefillVariant> PrefillVariants() {
  static const std::array<PrefillVariant, 3> kVariants = {
      AmxPrefillVariant(), Avx512PrefillVariant(), HighwayPrefillVariant()};
  return kVariants;
}

void RunAttendPrefill(const AttendPrefillParams& params, const PrefillVariant& variant,
                      Team& team) {
  DCHECK(params.dtype == DType::kBFloat16);
  if (params.batch.counts[kChunks] == 0) {
    return;
  }
  auto* count = static_cast<int64_t*>(params.workspace);
  auto* tasks = reinterpret_cast<PrefillTask*>(count + 2);
  if (team.thread() == 0) {
    *count = PlanTasks(params, tasks);
  }
  team.Barrier();
  variant.begin();
  PrefillWorker worker(params, variant, team);
  for (int64_t i = team.Next(); i < *count; i = team.Next()) {
    worker.Run(tasks[i]);
  }
  variant.end();
  if (params.blocks != nullptr) {
    std::atomic_ref(params.blocks->scored).fetch_add(worker.blocks().scored);
    std::atomic_ref(params.blocks->weighed).fetch_add(worker.blocks().weighed);
  }
}

int64_t AttendPrefillWorkspace(const AttendPrefillParams& params) {
  return 16 + MaxTasks(params) * static_cast<int64_t>(sizeof(PrefillTask));
}

void RunAttendPrefill(const AttendPrefillParams& params, Team& team) {
  RunAttendPrefill(params, FirstSupported(PrefillVariants()), team);
}

const char* AttendPrefillVariant(const AttendPrefillParams& /*params*/) {
  return FirstSupported(PrefillVariants()).name;
}

}  // namespace lserve::cpu
