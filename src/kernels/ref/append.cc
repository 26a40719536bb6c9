// RoPE, and what it appends to the cache.
#include <algorithm>
#include <cstring>

#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"
#include "kernels/ref/scalar.h"
#include "kernels/sketch.h"

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
void UpdateStats(const Page<T>& page, const KvPageLayout& layout, int32_t head, int32_t token) {
  const T* key = page.Key(head, token);
  T* minimum = page.Minimum(head, token / kLogicalPageTokens);
  T* maximum = page.Maximum(head, token / kLogicalPageTokens);
  const bool fresh = token % kLogicalPageTokens == 0;
  for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
    if (fresh || ToFloat(key[d]) < ToFloat(minimum[d])) {
      minimum[d] = key[d];
    }
    if (fresh || ToFloat(key[d]) > ToFloat(maximum[d])) {
      maximum[d] = key[d];
    }
  }
}

// Box and codes of a full page's keys.
template <typename T>
void WriteSketch(const Page<T>& page, const KvPageLayout& layout) {
  for (int32_t head = 0; head < layout.heads; ++head) {
    for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
      float lowest = ToFloat(page.Key(head, 0)[d]);
      float highest = lowest;
      for (int32_t token = 1; token < kPageTokens; ++token) {
        lowest = std::min(lowest, ToFloat(page.Key(head, token)[d]));
        highest = std::max(highest, ToFloat(page.Key(head, token)[d]));
      }
      Float16& lo = page.Box(head)[d];
      Float16& hi = page.Box(head)[layout.padded_head_dim + d];
      lo = RoundDownToFloat16(lowest);
      hi = RoundUpToFloat16(highest);
      const float step = SketchStep(ToFloat(lo), ToFloat(hi));
      for (int32_t token = 0; token < kPageTokens; ++token) {
        page.SetCode(head, token, d,
                     SketchCode(ToFloat(page.Key(head, token)[d]), ToFloat(lo), step));
      }
    }
  }
}

// Writes k and v of KV heads [first_head, first_head + page heads) of a row into token `token`.
template <typename T>
void WriteToken(const RopeAppendParams& params, HeadMaker<T>& maker, int32_t row,
                int32_t first_head, const Page<T>& page, const KvPageLayout& layout,
                int32_t token) {
  for (int32_t head = 0; head < layout.heads; ++head) {
    maker.Load(row, params.q_heads + first_head + head);
    maker.NormAndRotate(row, params.k_norm);
    maker.Write(page.Key(head, token), layout.padded_head_dim);
    maker.Load(row, params.q_heads + params.kv_heads + first_head + head);
    maker.Write(page.Value(head, token), layout.padded_head_dim);
    if (layout.score == PageScore::kMinMax) {
      UpdateStats(page, layout, head, token);
    }
  }
}

// The open page takes the token; if the token is the first of its page, the page before it closes.
template <typename T>
void AppendRetrieval(const RopeAppendParams& params, HeadMaker<T>& maker, int32_t row, int32_t slot,
                     int32_t position) {
  const RetrievalLane& lane = params.retrieval;
  if (lane.layout.heads == 0) {
    return;
  }
  std::byte* open = OpenPage(lane, slot);
  if (position > 0 && position % kPageTokens == 0) {
    std::byte* closed = ClosedPage(lane, slot, position / kPageTokens - 1);
    std::memcpy(closed, open, static_cast<size_t>(lane.layout.page_bytes()));
    if (lane.layout.score == PageScore::kSketch) {
      WriteSketch(Page<T>(closed, lane.layout), lane.layout);
    }
  }
  WriteToken(params, maker, row, 0, Page<T>(open, lane.layout), lane.layout,
             position % kPageTokens);
}

// The tokens that precede the chunk in its first page, from the ring.
template <typename T>
void CompleteFirstPage(const StreamingLane& lane, const PrefillChunk& chunk) {
  if (chunk.first_position % kPageTokens == 0) {
    return;
  }
  const int32_t page = chunk.first_position / kPageTokens;
  const Page<T> from(RingPage(lane, chunk.slot, page), lane.layout);
  const Page<T> to(ChunkPage(lane, chunk, page), lane.layout);
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
    AppendRetrieval(params, maker, row, batch.row_slot[row], batch.row_position[row]);
  }
  for (int32_t row = 0; streams && row < batch.counts[kDecodeRows]; ++row) {
    const int32_t position = batch.row_position[row];
    const Page<T> page(RingPage(streaming, batch.row_slot[row], position / kPageTokens),
                       streaming.layout);
    WriteToken(params, maker, row, first_streaming_head, page, streaming.layout,
               position % kPageTokens);
  }
  for (int32_t c = 0; streams && c < batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = batch.chunks[c];
    CompleteFirstPage<T>(streaming, chunk);
    for (int32_t i = 0; i < chunk.rows; ++i) {
      const int32_t position = chunk.first_position + i;
      const Page<T> page(ChunkPage(streaming, chunk, position / kPageTokens), streaming.layout);
      WriteToken(params, maker, chunk.first_row + i, first_streaming_head, page, streaming.layout,
                 position % kPageTokens);
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
  for (int32_t c = 0; c < batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = batch.chunks[c];
    use(chunk.slot);
    CHECK_EQ(chunk.first_row, next_row);
    CHECK_GE(chunk.rows, 1);
    for (int32_t i = 0; i < chunk.rows; ++i) {
      CHECK_EQ(batch.row_slot[chunk.first_row + i], chunk.slot);
      CHECK_EQ(batch.row_position[chunk.first_row + i], chunk.first_position + i);
    }
    next_row += chunk.rows;
  }
  CHECK_EQ(next_row, BatchRows(batch));
  for (int32_t i = 0; i < batch.counts[kLogitRows]; ++i) {
    CHECK(batch.logit_row[i] >= 0 && batch.logit_row[i] < next_row);
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
        std::memcpy(RingPage(lane, chunk.slot, page), ChunkPage(lane, chunk, page),
                    static_cast<size_t>(lane.layout.page_bytes()));
      }
    }
  }
}

}  // namespace lserve::ref
