// Attention of decode and prefill rows: collect the cached tokens that a query sees, then
// SoftmaxAttention over them.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"
#include "kernels/ref/scalar.h"

namespace lserve::ref {
namespace {

// Calls see(token) for the tokens that a streaming head's query at `position` sees, ascending:
// sinks, then the local window without the sinks in it.
template <typename See>
void ForStreamingTokens(const StreamingLane& lane, int32_t position, See see) {
  const int32_t sinks = std::min(lane.sink_tokens, position + 1);
  for (int32_t token = 0; token < sinks; ++token) {
    see(token);
  }
  for (int32_t token = std::max(sinks, position - lane.local_tokens + 1); token <= position;
       ++token) {
    see(token);
  }
}

// The units that a decode row of retrieval head `head` reads, ascending: its list united with the
// forced newest units of the row's own position, which a reused list may not have.
std::vector<int32_t> UnitsToRead(const AttendDecodeParams& params, int32_t slot, int32_t head,
                                 int32_t tokens, int32_t* unit_tokens) {
  const UnitLists& lists = params.lists;
  const int64_t index = int64_t{slot} * lists.slot_lists + lists.first_list + head;
  std::vector<int32_t> units;
  if (lists.units == nullptr || lists.counts[index] < 0) {
    *unit_tokens = kPageTokens;
    for (int32_t unit = 0; unit * kPageTokens < tokens; ++unit) {
      units.push_back(unit);
    }
    return units;
  }
  *unit_tokens = params.policy.unit_tokens;
  const int32_t* list = lists.units + index * lists.capacity;
  const int32_t forced = FirstForcedNewestUnit(tokens, *unit_tokens);
  for (int32_t i = 0; i < lists.counts[index] && list[i] < forced; ++i) {
    DCHECK(i == 0 || list[i - 1] < list[i]);
    units.push_back(list[i]);
  }
  for (int32_t unit = forced; unit * *unit_tokens < tokens; ++unit) {
    units.push_back(unit);
  }
  return units;
}

// Heads of boxed pages as attention reads them: rounded to T. Closed pages do not change within an
// operation, so each is read back once.
template <typename T>
class ReadBackPages {
 public:
  CachedToken<T> Token(const Page<T>& page, int32_t head, int32_t token) {
    const KvPageLayout& layout = page.layout();
    if (!layout.boxed()) {
      return {page.Key(head, token), page.Value(head, token)};
    }
    const auto dim = static_cast<size_t>(layout.head_dim);
    std::vector<T>& elements = heads_[{page.data(), head}];
    if (elements.empty()) {
      for (int32_t t = 0; t < kPageTokens; ++t) {
        for (int32_t d = 0; d < layout.head_dim; ++d) {
          elements.push_back(FromFloat<T>(page.KeyElement(head, t, d)));
        }
        for (int32_t d = 0; d < layout.head_dim; ++d) {
          elements.push_back(FromFloat<T>(page.ValueElement(head, t, d)));
        }
      }
    }
    const T* key = elements.data() + static_cast<size_t>(token) * 2 * dim;
    return {key, key + dim};
  }

 private:
  std::map<std::pair<const std::byte*, int32_t>, std::vector<T>> heads_;  // [64][key, value]
};

// The attention of one row of one KV head: what it sees is collected once for its group of heads.
template <typename T>
class RowAttention {
 public:
  RowAttention(const void* q, void* output, int32_t q_heads, int32_t group)
      : q_(static_cast<const T*>(q)),
        output_(static_cast<T*>(output)),
        q_heads_(q_heads),
        group_(group) {}

  void Clear() {
    tokens_.clear();
    blocks_.clear();
  }

  // The tokens seen from here on are those of the next KV block of the walk.
  void BeginBlock() { blocks_.push_back(tokens_.size()); }

  void See(const Page<T>& page, int32_t head, int32_t token) {
    tokens_.push_back(pages_.Token(page, head, token % kPageTokens));
  }

  // kv_head counts the layer's KV heads, retrieval first; log_sums: [rows, q_heads] or null.
  void Attend(int32_t row, int32_t kv_head, int32_t head_dim, float* log_sums = nullptr) const {
    for (int32_t g = 0; g < group_; ++g) {
      const int64_t head = int64_t{row} * q_heads_ + kv_head * group_ + g;
      const double log_sum =
          SoftmaxAttention<T>(q_ + head * head_dim, tokens_, head_dim, output_ + head * head_dim);
      if (log_sums != nullptr) {
        log_sums[head] = static_cast<float>(log_sum);
      }
    }
  }

  // The same over the blocks that each query head weighs; 0: all.
  void AttendAbove(double threshold, int32_t row, int32_t kv_head, int32_t head_dim,
                   PrefillBlocks* counts) const {
    for (int32_t g = 0; g < group_; ++g) {
      const int64_t head = int64_t{row} * q_heads_ + kv_head * group_ + g;
      const std::vector<CachedToken<T>> weighed =
          Weighed(q_ + head * head_dim, threshold, head_dim, counts);
      SoftmaxAttention<T>(q_ + head * head_dim, weighed, head_dim, output_ + head * head_dim);
    }
  }

 private:
  // The tokens of the blocks that the query q weighs.
  std::vector<CachedToken<T>> Weighed(const T* q, double threshold, int32_t head_dim,
                                      PrefillBlocks* counts) const {
    const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    const auto end_of = [&](size_t block) {
      return block + 1 < blocks_.size() ? blocks_[block + 1] : tokens_.size();
    };
    std::vector<double> scores(blocks_.size(), -INFINITY);
    for (size_t block = 0; threshold > 0.0 && block < blocks_.size(); ++block) {
      for (size_t t = blocks_[block]; t < end_of(block); ++t) {
        scores[block] = std::max(scores[block], Dot(q, tokens_[t].key, head_dim) * scale);
      }
    }
    const std::vector<bool> weighed = WeighedBlocks(scores, threshold, kPrefillStepBlocks);
    std::vector<CachedToken<T>> tokens;
    for (size_t block = 0; block < blocks_.size(); ++block) {
      const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(blocks_[block]);
      const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(end_of(block));
      counts->scored += begin < end ? 1 : 0;
      if (begin < end && (threshold == 0.0 || weighed[block])) {
        counts->weighed += 1;
        tokens.insert(tokens.end(), begin, end);
      }
    }
    return tokens;
  }

  const T* q_;
  T* output_;
  int32_t q_heads_;
  int32_t group_;
  std::vector<CachedToken<T>> tokens_;
  std::vector<size_t> blocks_;  // where each block's tokens begin
  ReadBackPages<T> pages_;
};

template <typename T>
void AttendDecodeRow(const AttendDecodeParams& params, int32_t row, RowAttention<T>& attention) {
  const RetrievalLane& retrieval = params.retrieval;
  const StreamingLane& streaming = params.streaming;
  const int32_t slot = params.batch.row_slot[row];
  const int32_t position = params.batch.row_position[row];
  for (int32_t head = 0; head < retrieval.layout.heads; ++head) {
    attention.Clear();
    int32_t unit_tokens = 0;
    for (const int32_t unit : UnitsToRead(params, slot, head, position + 1, &unit_tokens)) {
      const int32_t end = std::min((unit + 1) * unit_tokens, position + 1);
      for (int32_t token = unit * unit_tokens; token < end; ++token) {
        attention.See(RetrievalPage<T>(retrieval, slot, token / kPageTokens, position), head,
                      token);
      }
    }
    attention.Attend(row, head, retrieval.layout.head_dim, params.log_sums);
  }
  for (int32_t head = 0; head < streaming.layout.heads; ++head) {
    attention.Clear();
    ForStreamingTokens(streaming, position, [&](int32_t token) {
      attention.See(RingPage<T>(streaming, slot, token / kPageTokens), head, token);
    });
    attention.Attend(row, retrieval.layout.heads + head, streaming.layout.head_dim,
                     params.log_sums);
  }
}

// The KV blocks that a chunk's query at `position` of retrieval head `head` walks, in order, those
// that it does not reach included.
std::vector<int32_t> WalkOf(const AttendPrefillParams& params, const PrefillChunk& chunk,
                            int32_t head, int32_t position) {
  const int32_t query_block = position / kQueryBlockTokens;
  const bool leaves_out = params.policy.threshold > 0.0f;
  std::vector<int32_t> blocks;
  if (params.block_offsets == nullptr) {
    for (int32_t i = 0; i < 2 * (query_block + 1); ++i) {
      blocks.push_back(leaves_out ? WalkedBlock(query_block, i) : i);
    }
    return blocks;
  }
  const int32_t step_block =
      chunk.first_query_block + query_block - chunk.first_position / kQueryBlockTokens;
  const int64_t list = int64_t{step_block} * params.retrieval.layout.heads + head;
  blocks.assign(params.block_ids + params.block_offsets[list],
                params.block_ids + params.block_offsets[list + 1]);
  return blocks;
}

// The page of a chunk's query at `position`, or one before it. Its own page it reads in full: open
// if it is the slot's newest after the append, else among the chunk's pages, unless the closed page
// holds the same.
template <typename T>
Page<T> PageSeenFrom(const RetrievalLane& lane, const PrefillChunk& chunk, int32_t position,
                     int32_t page) {
  const int32_t newest = chunk.first_position + chunk.rows - 1;
  if (lane.layout.boxed() && page == position / kPageTokens && page != newest / kPageTokens) {
    return ChunkPage<T>(lane.chunk_pages, lane.layout.open(), chunk, page);
  }
  return RetrievalPage<T>(lane, chunk.slot, page, newest);
}

template <typename T>
void AttendChunkRow(const AttendPrefillParams& params, const PrefillChunk& chunk, int32_t i,
                    RowAttention<T>& attention, PrefillBlocks* counts) {
  const RetrievalLane& retrieval = params.retrieval;
  const StreamingLane& streaming = params.streaming;
  const int32_t row = chunk.first_row + i;
  const int32_t position = chunk.first_position + i;
  for (int32_t head = 0; head < retrieval.layout.heads; ++head) {
    attention.Clear();
    for (const int32_t block : WalkOf(params, chunk, head, position)) {
      attention.BeginBlock();
      const int32_t end = std::min((block + 1) * kPageTokens, position + 1);
      for (int32_t token = block * kPageTokens; token < end; ++token) {
        attention.See(PageSeenFrom<T>(retrieval, chunk, position, block), head, token);
      }
    }
    const bool dense = position < params.policy.dense_tokens;
    attention.AttendAbove(dense ? 0.0 : static_cast<double>(params.policy.threshold), row, head,
                          retrieval.layout.head_dim, counts);
  }
  for (int32_t head = 0; head < streaming.layout.heads; ++head) {
    attention.Clear();
    ForStreamingTokens(streaming, position, [&](int32_t token) {
      const int32_t page = token / kPageTokens;
      attention.See(page < chunk.first_position / kPageTokens
                        ? RingPage<T>(streaming, chunk.slot, page)
                        : ChunkPage<T>(streaming.chunk_pages, streaming.layout, chunk, page),
                    head, token);
    });
    attention.Attend(row, retrieval.layout.heads + head, streaming.layout.head_dim);
  }
}

}  // namespace

void RunAttendDecode(const AttendDecodeParams& params) {
  CheckBatchLists(params.batch);
  WithActivations(params.dtype, [&]<typename T>() {
    RowAttention<T> attention(params.q, params.output, params.q_heads, params.group);
    for (int32_t row = 0; row < params.batch.counts[kDecodeRows]; ++row) {
      AttendDecodeRow<T>(params, row, attention);
    }
  });
}

void RunAttendPrefill(const AttendPrefillParams& params) {
  CheckBatchLists(params.batch);
  WithActivations(params.dtype, [&]<typename T>() {
    RowAttention<T> attention(params.q, params.output, params.q_heads, params.group);
    PrefillBlocks counts;
    for (int32_t c = 0; c < params.batch.counts[kChunks]; ++c) {
      const PrefillChunk& chunk = params.batch.chunks[c];
      for (int32_t i = 0; i < chunk.rows; ++i) {
        AttendChunkRow<T>(params, chunk, i, attention, &counts);
      }
    }
    if (params.blocks != nullptr) {
      params.blocks->scored += counts.scored;
      params.blocks->weighed += counts.weighed;
    }
  });
}

}  // namespace lserve::ref
