// RoPE, and what it appends to the cache.
#include <algorithm>
#include <cstring>

#include "kernels/boxed.h"
#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"
#include "kernels/ref/scalar.h"

namespace lserve::ref {
namespace {

// One head of one row of qkv, from which q, k or v is made.
template <typename T>
class HeadMaker {
 public:
  explicit HeadMaker(const RopeAppendParams& params)
      : params_(params), x_(static_cast<size_t>(params.head_dim)) {}

  // Loads head `head` of q, k, v counted together, with its bias.
  void Load(int32_t row, int32_t head) {
    const int64_t dim = params_.head_dim;
    const int64_t row_elements = (int64_t{params_.q_heads} + 2 * params_.kv_heads) * dim;
    const T* qkv = static_cast<const T*>(params_.qkv) + row * row_elements + head * dim;
    const T* bias =
        params_.bias == nullptr ? nullptr : static_cast<const T*>(params_.bias) + head * dim;
    for (size_t d = 0; d < x_.size(); ++d) {
      x_[d] = static_cast<double>(ToFloat(qkv[d]));
      if (bias != nullptr) {
        x_[d] += static_cast<double>(ToFloat(bias[d]));
      }
    }
  }

  // weight: [head_dim], or null for no normalisation.
  void NormAndRotate(int32_t row, const void* weight) {
    if (weight != nullptr) {
      RmsNorm(std::span<double>(x_), static_cast<const T*>(weight),
              static_cast<double>(params_.norm_epsilon));
    }
    Rotate(std::span<double>(x_), params_.angles + int64_t{row} * params_.head_dim);
  }

  // Rounds into [padded]; what lies beyond head_dim becomes zero.
  void Write(T* destination, int32_t padded) const {
    for (size_t d = 0; d < x_.size(); ++d) {
      destination[d] = Store<T>(x_[d]);
    }
    for (int32_t d = params_.head_dim; d < padded; ++d) {
      destination[d] = T{};
    }
  }

 private:
  const RopeAppendParams& params_;
  std::vector<double> x_;
};

// Takes the key of `token` into the statistics of its logical page; the first token of a logical
// page starts them, so that nothing of a recycled page survives.
template <typename T>
void UpdateStats(const Page<T>& page, int32_t head, int32_t token) {
  const T* key = page.Key(head, token);
  T* minimum = page.Minimum(head, token / kLogicalPageTokens);
  T* maximum = page.Maximum(head, token / kLogicalPageTokens);
  const bool fresh = token % kLogicalPageTokens == 0;
  for (int32_t d = 0; d < page.layout().padded_head_dim; ++d) {
    if (fresh || ToFloat(key[d]) < ToFloat(minimum[d])) {
      minimum[d] = key[d];
    }
    if (fresh || ToFloat(key[d]) > ToFloat(maximum[d])) {
      maximum[d] = key[d];
    }
  }
}

// Box and codes of a full page's keys: the sketch, and more bits in a boxed format.
template <typename T>
void CodeKeys(const Page<T>& open, const Page<T>& closed) {
  const KvPageLayout& layout = closed.layout();
  for (int32_t head = 0; head < layout.heads; ++head) {
    for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
      const auto key = [&](int32_t token) { return ToFloat(open.Key(head, token)[d]); };
      float lowest = key(0);
      float highest = lowest;
      for (int32_t token = 1; token < kPageTokens; ++token) {
        lowest = std::min(lowest, key(token));
        highest = std::max(highest, key(token));
      }
      closed.Box(head)[d] = RoundDownToFloat16(lowest);
      closed.Box(head)[layout.padded_head_dim + d] = RoundUpToFloat16(highest);
      const float lo = closed.Lo(head, d);
      const float step = KeyStep(lo, closed.Hi(head, d), layout.key_bits());
      for (int32_t token = 0; token < kPageTokens; ++token) {
        closed.SetKeyCode(head, token, d, KeyCode(key(token), lo, step, layout.key_bits()));
      }
    }
  }
}

// Grids and codes of a boxed page's values; the padding is coded, but does not widen the grid.
template <typename T>
void CodeValues(const Page<T>& open, const Page<T>& closed) {
  const KvPageLayout& layout = closed.layout();
  for (int32_t head = 0; head < layout.heads; ++head) {
    for (int32_t token = 0; token < kPageTokens; ++token) {
      const T* values = open.Value(head, token);
      const auto less = [](T a, T b) { return ToFloat(a) < ToFloat(b); };
      const auto [lowest, highest] = std::minmax_element(values, values + layout.head_dim, less);
      const ValueGrid grid = GridOf(ToFloat(*lowest), ToFloat(*highest), layout.value_bits());
      closed.Grid(head, token) = grid;
      for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
        closed.SetValueCode(head, token, d,
                            ValueCode(ToFloat(values[d]), grid, layout.value_bits()));
      }
    }
  }
}

// A full open page becomes a page of the pool.
template <typename T>
void ClosePage(const Page<T>& open, const Page<T>& closed) {
  const KvPageLayout& layout = closed.layout();
  if (layout.boxed()) {
    CodeValues(open, closed);
  } else {
    std::memcpy(closed.data(), open.data(),
                static_cast<size_t>(layout.heads * 2 * layout.plane_bytes()));
  }
  if (layout.sketch_bytes() > 0) {
    CodeKeys(open, closed);
  }
  if (layout.score == PageScore::kMinMax) {
    std::memcpy(closed.Minimum(0, 0), open.Minimum(0, 0),
                static_cast<size_t>(layout.heads * layout.min_max_bytes()));
  }
}

// Writes k and v of KV heads [first_head, first_head + page heads) of a row into token `token`.
template <typename T>
void WriteToken(const RopeAppendParams& params, HeadMaker<T>& maker, int32_t row,
                int32_t first_head, const Page<T>& page, int32_t token) {
  const KvPageLayout& layout = page.layout();
  for (int32_t head = 0; head < layout.heads; ++head) {
    maker.Load(row, params.q_heads + first_head + head);
    maker.NormAndRotate(row, params.k_norm);
    maker.Write(page.Key(head, token), layout.padded_head_dim);
    maker.Load(row, params.q_heads + params.kv_heads + first_head + head);
    maker.Write(page.Value(head, token), layout.padded_head_dim);
    if (layout.score == PageScore::kMinMax) {
      UpdateStats(page, head, token);
    }
  }
}

// The open page takes the token; if the token is the first of its page, the page before it closes.
// A boxed page of the chunk (null: of a decode row) stays in full among the chunk pages.
template <typename T>
void AppendRetrieval(const RopeAppendParams& params, HeadMaker<T>& maker, int32_t row,
                     const PrefillChunk* chunk) {
  const RetrievalLane& lane = params.retrieval;
  if (lane.layout.heads == 0) {
    return;
  }
  const int32_t slot = params.batch.row_slot[row];
  const int32_t position = params.batch.row_position[row];
  const Page<T> open = OpenPage<T>(lane, slot);
  if (position > 0 && position % kPageTokens == 0) {
    const int32_t full = position / kPageTokens - 1;
    ClosePage(open, ClosedPage<T>(lane, slot, full));
    if (lane.layout.boxed() && chunk != nullptr && full >= chunk->first_position / kPageTokens) {
      std::memcpy(ChunkPage<T>(lane.chunk_pages, open.layout(), *chunk, full).data(), open.data(),
                  static_cast<size_t>(open.layout().page_bytes()));
    }
  }
  WriteToken(params, maker, row, 0, open, position % kPageTokens);
}

// The tokens that precede the chunk in its first page, from the ring.
template <typename T>
void CompleteFirstPage(const StreamingLane& lane, const PrefillChunk& chunk) {
  if (chunk.first_position % kPageTokens == 0) {
    return;
  }
  const int32_t page = chunk.first_position / kPageTokens;
  const Page<T> from = RingPage<T>(lane, chunk.slot, page);
  const Page<T> to = ChunkPage<T>(lane.chunk_pages, lane.layout, chunk, page);
  const auto bytes = static_cast<size_t>(lane.layout.padded_head_dim) * sizeof(T);
  for (int32_t head = 0; head < lane.layout.heads; ++head) {
    for (int32_t token = 0; token < chunk.first_position % kPageTokens; ++token) {
      std::memcpy(to.Key(head, token), from.Key(head, token), bytes);
      std::memcpy(to.Value(head, token), from.Value(head, token), bytes);
    }
  }
}

template <typename T>
void AppendRows(const RopeAppendParams& params) {
  const BatchView& batch = params.batch;
  const StreamingLane& streaming = params.streaming;
  const bool streams = streaming.layout.heads > 0;
  const int32_t first_streaming_head = params.retrieval.layout.heads;
  HeadMaker<T> maker(params);
  for (int32_t row = 0; row < BatchRows(batch); ++row) {
    T* q = static_cast<T*>(params.q) + int64_t{row} * params.q_heads * params.head_dim;
    for (int32_t head = 0; head < params.q_heads; ++head) {
      maker.Load(row, head);
      maker.NormAndRotate(row, params.q_norm);
      maker.Write(q + int64_t{head} * params.head_dim, params.head_dim);
    }
  }
  for (int32_t row = 0; row < batch.counts[kDecodeRows]; ++row) {
    AppendRetrieval(params, maker, row, nullptr);
    if (streams) {
      const int32_t position = batch.row_position[row];
      WriteToken(params, maker, row, first_streaming_head,
                 RingPage<T>(streaming, batch.row_slot[row], position / kPageTokens),
                 position % kPageTokens);
    }
  }
  for (int32_t c = 0; c < batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = batch.chunks[c];
    if (streams) {
      CompleteFirstPage<T>(streaming, chunk);
    }
    for (int32_t i = 0; i < chunk.rows; ++i) {
      AppendRetrieval(params, maker, chunk.first_row + i, &chunk);
      if (streams) {
        const int32_t position = chunk.first_position + i;
        WriteToken(
            params, maker, chunk.first_row + i, first_streaming_head,
            ChunkPage<T>(streaming.chunk_pages, streaming.layout, chunk, position / kPageTokens),
            position % kPageTokens);
      }
    }
  }
}

}  // namespace

void CheckBatchLists([[maybe_unused]] const BatchView& batch) {
#ifndef NDEBUG
  const int32_t decode_rows = batch.counts[kDecodeRows];
  CHECK(decode_rows >= 0 && decode_rows <= batch.max_decode_rows);
  CHECK_LE(BatchRows(batch), batch.max_rows);
  CHECK_LE(batch.counts[kChunks], batch.max_chunks);
  CHECK_LE(batch.counts[kLogitRows], batch.max_logit_rows);
  std::vector<bool> used(static_cast<size_t>(batch.max_slots));
  const auto use = [&](int32_t slot) {
    CHECK(slot >= 0 && slot < batch.max_slots);
    CHECK_MSG(!used[static_cast<size_t>(slot)], "slot {} is in the step twice", slot);
    used[static_cast<size_t>(slot)] = true;
  };
  for (int32_t row = 0; row < decode_rows; ++row) {
    use(batch.row_slot[row]);
    CHECK_GE(batch.row_position[row], 0);
  }
  int32_t next_row = decode_rows;
  int32_t prefill_rows = 0;
  for (int32_t c = 0; c < batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = batch.chunks[c];
    use(chunk.slot);
    CHECK_GE(chunk.first_row, next_row);
    CHECK_GE(chunk.rows, 1);
    for (int32_t i = 0; i < chunk.rows; ++i) {
      CHECK_EQ(batch.row_slot[chunk.first_row + i], chunk.slot);
      CHECK_EQ(batch.row_position[chunk.first_row + i], chunk.first_position + i);
    }
    next_row = chunk.first_row + chunk.rows;
    prefill_rows += chunk.rows;
  }
  CHECK_EQ(prefill_rows, batch.counts[kPrefillRows]);
  CHECK_LE(next_row, batch.max_rows);
  for (int32_t i = 0; i < batch.counts[kLogitRows]; ++i) {
    CHECK(batch.logit_row[i] >= 0 && batch.logit_row[i] < batch.max_rows);
  }
#endif
}

// The angle is the float32 product that checkpoints were trained with; its cosine and sine are
// exact before they are rounded to float32.
void RunRopeAngles(const RopeAnglesParams& params) {
  const int32_t half = params.head_dim / 2;
  for (int32_t row = 0; row < BatchRows(params.batch); ++row) {
    const auto position = static_cast<float>(params.batch.row_position[row]);
    float* angles = params.angles + int64_t{row} * params.head_dim;
    for (int32_t d = 0; d < half; ++d) {
      const auto angle = static_cast<double>(position * params.inverse_frequencies[d]);
      const auto scale = static_cast<double>(params.scale);
      angles[2 * d] = static_cast<float>(std::cos(angle) * scale);
      angles[2 * d + 1] = static_cast<float>(std::sin(angle) * scale);
    }
  }
}

void RunRopeAppend(const RopeAppendParams& params) {
  CheckBatchLists(params.batch);
  WithActivations(params.dtype, [&]<typename T>() { AppendRows<T>(params); });
}

// A page matters to later queries if it holds sink tokens or is one of the newest ring_pages.
void RunAppendStreaming(const AppendStreamingParams& params) {
  const StreamingLane& lane = params.streaming;
  if (lane.layout.heads == 0) {
    return;
  }
  for (int32_t c = 0; c < params.batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = params.batch.chunks[c];
    const int32_t last_page = (chunk.first_position + chunk.rows - 1) / kPageTokens;
    for (int32_t page = chunk.first_position / kPageTokens; page <= last_page; ++page) {
      if (page < lane.sink_pages || page > last_page - lane.ring_pages) {
        std::memcpy(RingPage<std::byte>(lane, chunk.slot, page).data(),
                    ChunkPage<std::byte>(lane.chunk_pages, lane.layout, chunk, page).data(),
                    static_cast<size_t>(lane.layout.page_bytes()));
      }
    }
  }
}

}  // namespace lserve::ref
