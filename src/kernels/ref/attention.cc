// Attention of decode and prefill rows: collect the cached tokens that a query sees, then
// SoftmaxAttention over them.
#include <algorithm>
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

  void Clear() { tokens_.clear(); }

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

 private:
  const T* q_;
  T* output_;
  int32_t q_heads_;
  int32_t group_;
  std::vector<CachedToken<T>> tokens_;
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

// Calls see(token) for the tokens of retrieval head `head` that a chunk's query at `position` sees.
template <typename See>
void ForRetrievalTokens(const AttendPrefillParams& params, const PrefillChunk& chunk, int32_t head,
                        int32_t position, See see) {
  const auto see_block = [&](int32_t block) {
    const int32_t end = std::min((block + 1) * kPageTokens, position + 1);
    for (int32_t token = block * kPageTokens; token < end; ++token) {
      see(token);
    }
  };
  if (params.block_offsets == nullptr) {
    for (int32_t block = 0; block <= position / kPageTokens; ++block) {
      see_block(block);
    }
    return;
  }
  const int32_t query_block = chunk.first_query_block + position / kQueryBlockTokens -
                              chunk.first_position / kQueryBlockTokens;
  const int64_t list = int64_t{query_block} * params.retrieval.layout.heads + head;
  for (int32_t i = params.block_offsets[list]; i < params.block_offsets[list + 1]; ++i) {
    see_block(params.block_ids[i]);
  }
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
                    RowAttention<T>& attention) {
  const RetrievalLane& retrieval = params.retrieval;
  const StreamingLane& streaming = params.streaming;
  const int32_t row = chunk.first_row + i;
  const int32_t position = chunk.first_position + i;
  for (int32_t head = 0; head < retrieval.layout.heads; ++head) {
    attention.Clear();
    ForRetrievalTokens(params, chunk, head, position, [&](int32_t token) {
      attention.See(PageSeenFrom<T>(retrieval, chunk, position, token / kPageTokens), head, token);
    });
    attention.Attend(row, head, retrieval.layout.head_dim);
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
    for (int32_t c = 0; c < params.batch.counts[kChunks]; ++c) {
      const PrefillChunk& chunk = params.batch.chunks[c];
      for (int32_t i = 0; i < chunk.rows; ++i) {
        AttendChunkRow<T>(params, chunk, i, attention);
      }
    }
  });
}

}  // namespace lserve::ref
