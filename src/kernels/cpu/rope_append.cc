// RopeAppend: work goes by (page of a chunk, KV head with its query heads), in units of 16 tokens.
//
// Hazards. A chunk's first page may begin in the slot's open page, and its last page becomes the
// open page. So one task does everything that touches the open page of a (slot, head), in order:
// close what was full, move the begun page to the pool and finish it, start the new open page.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/page_codes.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope_append.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16-inl.h"

#ifndef LSERVE_KERNELS_CPU_ROPE_APPEND_ONCE_
#define LSERVE_KERNELS_CPU_ROPE_APPEND_ONCE_
namespace lserve::cpu {

// Where one head of one page lies.
struct HeadPlanes {
  BFloat16* keys;
  BFloat16* values;
  BFloat16* stats;  // null without minima and maxima
};

}  // namespace lserve::cpu
#endif  // LSERVE_KERNELS_CPU_ROPE_APPEND_ONCE_

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu {
namespace HWY_NAMESPACE {

// Cosines and sines of up to 16 rows, apart: [16][head_dim / 2] each.
struct UnitAngles {
  alignas(64) float cosines[kUnitTokens * kMaxHeadDim / 2];
  alignas(64) float sines[kUnitTokens * kMaxHeadDim / 2];
};

void SplitAngles(const float* angles, int32_t rows, int32_t half, UnitAngles& out) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int32_t>(hn::Lanes(df));
  const int32_t count = rows * half;
  int32_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    auto cosine = hn::Undefined(df);
    auto sine = hn::Undefined(df);
    hn::LoadInterleaved2(df, angles + 2 * i, cosine, sine);
    hn::StoreU(cosine, df, out.cosines + i);
    hn::StoreU(sine, df, out.sines + i);
  }
  for (; i < count; ++i) {
    out.cosines[i] = angles[2 * i];
    out.sines[i] = angles[2 * i + 1];
  }
}

// output[d] = rotate(norm(x + bias)), rounded once; bias and norm may be null. The scalar tail
// serves head sizes whose half is no multiple of the vector.
void RotateHead(const BFloat16* x, const BFloat16* bias, const BFloat16* norm, float epsilon,
                const float* cosines, const float* sines, int32_t head_dim, BFloat16* output) {
  const hn::CappedTag<float, 16> df;
  const auto lanes = static_cast<int32_t>(hn::Lanes(df));
  const int32_t half = head_dim / 2;
  alignas(64) float prepared[kMaxHeadDim];
  const bool plain = bias == nullptr && norm == nullptr;
  if (!plain) {
    float squares = 0.0f;
    for (int32_t d = 0; d < head_dim; ++d) {
      prepared[d] = ToFloat(x[d]) + (bias == nullptr ? 0.0f : ToFloat(bias[d]));
      squares += prepared[d] * prepared[d];
    }
    if (norm != nullptr) {
      const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(head_dim) + epsilon);
      for (int32_t d = 0; d < head_dim; ++d) {
        prepared[d] *= inverse * ToFloat(norm[d]);
      }
    }
  }
  int32_t d = 0;
  for (; d + lanes <= half; d += lanes) {
    const auto low = plain ? LoadBF16(df, x + d) : hn::LoadU(df, prepared + d);
    const auto high = plain ? LoadBF16(df, x + half + d) : hn::LoadU(df, prepared + half + d);
    const auto cosine = hn::LoadU(df, cosines + d);
    const auto sine = hn::LoadU(df, sines + d);
    StoreBF16(df, hn::Sub(hn::Mul(low, cosine), hn::Mul(high, sine)), output + d);
    StoreBF16(df, hn::MulAdd(high, cosine, hn::Mul(low, sine)), output + half + d);
  }
  for (; d < half; ++d) {
    const float low = plain ? ToFloat(x[d]) : prepared[d];
    const float high = plain ? ToFloat(x[half + d]) : prepared[half + d];
    output[d] = ToBFloat16(low * cosines[d] - high * sines[d]);
    output[half + d] = ToBFloat16(high * cosines[d] + low * sines[d]);
  }
}

// keys: [16][padded]; unit: [padded / 2][16][2]. Blocks of 4 tokens by 4 pairs of dimensions.
void StoreKeyUnit(const BFloat16* keys, int32_t padded, BFloat16* unit) {
  const hn::Full128<uint32_t> du32;
  const hn::Full128<uint64_t> du64;
  const auto* from = reinterpret_cast<const uint32_t*>(keys);
  auto* to = reinterpret_cast<uint32_t*>(unit);
  const int32_t pairs = padded / 2;
  for (int32_t p = 0; p < pairs; p += 4) {
    for (int32_t t = 0; t < kUnitTokens; t += 4) {
      const auto r0 = hn::LoadU(du32, from + t * pairs + p);
      const auto r1 = hn::LoadU(du32, from + (t + 1) * pairs + p);
      const auto r2 = hn::LoadU(du32, from + (t + 2) * pairs + p);
      const auto r3 = hn::LoadU(du32, from + (t + 3) * pairs + p);
      const auto a = hn::BitCast(du64, hn::InterleaveLower(du32, r0, r1));  // pairs p, p + 1
      const auto b = hn::BitCast(du64, hn::InterleaveLower(du32, r2, r3));
      const auto c = hn::BitCast(du64, hn::InterleaveUpper(du32, r0, r1));  // pairs p + 2, p + 3
      const auto e = hn::BitCast(du64, hn::InterleaveUpper(du32, r2, r3));
      uint32_t* out = to + p * kUnitTokens + t;
      hn::StoreU(hn::BitCast(du32, hn::InterleaveLower(du64, a, b)), du32, out);
      hn::StoreU(hn::BitCast(du32, hn::InterleaveUpper(du64, a, b)), du32, out + kUnitTokens);
      hn::StoreU(hn::BitCast(du32, hn::InterleaveLower(du64, c, e)), du32, out + 2 * kUnitTokens);
      hn::StoreU(hn::BitCast(du32, hn::InterleaveUpper(du64, c, e)), du32, out + 3 * kUnitTokens);
    }
  }
}

// values: rows of head_dim, `stride` apart; unit: [8][padded][2]. Padding stays as it is (zero).
void StoreValueUnit(const BFloat16* values, int64_t stride, int32_t head_dim, int32_t padded,
                    BFloat16* unit) {
  const hn::CappedTag<uint32_t, 16> du32;
  const hn::Rebind<uint16_t, decltype(du32)> du16;
  const auto lanes = static_cast<int32_t>(hn::Lanes(du32));
  for (int32_t pair = 0; pair < kUnitTokens / 2; ++pair) {
    const auto* even = reinterpret_cast<const uint16_t*>(values + 2 * pair * stride);
    const auto* odd = reinterpret_cast<const uint16_t*>(values + (2 * pair + 1) * stride);
    auto* out = reinterpret_cast<uint32_t*>(unit + int64_t{pair} * 2 * padded);
    int32_t d = 0;
    for (; d + lanes <= head_dim; d += lanes) {
      const auto low = hn::PromoteTo(du32, hn::LoadU(du16, even + d));
      const auto high = hn::ShiftLeft<16>(hn::PromoteTo(du32, hn::LoadU(du16, odd + d)));
      hn::StoreU(hn::Or(low, high), du32, out + d);
    }
    for (; d < head_dim; ++d) {
      out[d] = uint32_t{even[d]} | uint32_t{odd[d]} << 16;
    }
  }
}

// Takes `tokens` keys ([tokens][padded]) into the (min, max) pairs of a logical page; `fresh`
// starts it with them, so that nothing of a recycled page survives.
void UpdateStats(const BFloat16* keys, int32_t tokens, int32_t padded, bool fresh,
                 BFloat16* stats) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<uint32_t, decltype(df)> du32;
  const auto lanes = static_cast<int32_t>(hn::Lanes(df));
  const auto upper = hn::Set(du32, 0xFFFF0000u);
  auto* pairs = reinterpret_cast<uint32_t*>(stats);
  for (int32_t d = 0; d < padded; d += lanes) {  // padded is a multiple of 32
    auto minimum = LoadBF16(df, keys + d);
    auto maximum = minimum;
    for (int32_t t = 1; t < tokens; ++t) {
      const auto key = LoadBF16(df, keys + t * padded + d);
      minimum = hn::Min(minimum, key);
      maximum = hn::Max(maximum, key);
    }
    if (!fresh) {
      const auto old = hn::LoadU(du32, pairs + d);
      minimum = hn::Min(minimum, hn::BitCast(df, hn::ShiftLeft<16>(old)));
      maximum = hn::Max(maximum, hn::BitCast(df, hn::And(old, upper)));
    }
    const auto low = hn::ShiftRight<16>(hn::BitCast(du32, minimum));
    hn::StoreU(hn::Or(low, hn::And(hn::BitCast(du32, maximum), upper)), du32, pairs + d);
  }
}

// Rows [row, row + rows) of one KV head and its query heads, all in one 16-token unit, of which the
// first row is token `first_token` of its page: q to its place, k and v to `planes`.
void AppendUnitRows(const RopeAppendParams& params, int64_t row, int32_t rows, int32_t kv_head,
                    int32_t first_token, const HeadPlanes& planes) {
  const int32_t dim = params.head_dim;
  const int32_t half = dim / 2;
  const int32_t padded = PaddedHeadDim(dim);
  const int64_t stride = (int64_t{params.q_heads} + 2 * params.kv_heads) * dim;
  const auto* qkv = static_cast<const BFloat16*>(params.qkv) + row * stride;
  const auto* bias = static_cast<const BFloat16*>(params.bias);
  const auto bias_of = [&](int32_t head) {
    return bias == nullptr ? nullptr : bias + int64_t{head} * dim;
  };
  UnitAngles angles;
  SplitAngles(params.angles + row * dim, rows, half, angles);

  const int32_t group = params.q_heads / params.kv_heads;
  auto* q = static_cast<BFloat16*>(params.q) + row * params.q_heads * dim;
  for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int32_t r = 0; r < rows; ++r) {
      RotateHead(qkv + r * stride + int64_t{head} * dim, bias_of(head),
                 static_cast<const BFloat16*>(params.q_norm), params.norm_epsilon,
                 angles.cosines + r * half, angles.sines + r * half, dim,
                 q + (int64_t{r} * params.q_heads + head) * dim);
    }
  }

  alignas(64) BFloat16 keys[kUnitTokens * kMaxHeadDim];
  const int32_t key_head = params.q_heads + kv_head;
  for (int32_t r = 0; r < rows; ++r) {
    RotateHead(qkv + r * stride + int64_t{key_head} * dim, bias_of(key_head),
               static_cast<const BFloat16*>(params.k_norm), params.norm_epsilon,
               angles.cosines + r * half, angles.sines + r * half, dim, keys + r * padded);
    std::memset(keys + r * padded + dim, 0, static_cast<size_t>(padded - dim) * sizeof(BFloat16));
  }

  const int32_t value_head = key_head + params.kv_heads;
  const BFloat16* values = qkv + int64_t{value_head} * dim;
  int64_t value_stride = stride;
  alignas(64) BFloat16 biased[kUnitTokens * kMaxHeadDim];
  if (bias != nullptr) {
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t d = 0; d < dim; ++d) {
        biased[r * dim + d] =
            ToBFloat16(ToFloat(values[r * stride + d]) + ToFloat(bias_of(value_head)[d]));
      }
    }
    values = biased;
    value_stride = dim;
  }

  const int32_t unit = first_token / kUnitTokens;
  if (rows == kUnitTokens) {
    StoreKeyUnit(keys, padded, planes.keys + int64_t{unit} * kUnitTokens * padded);
    StoreValueUnit(values, value_stride, dim, padded,
                   planes.values + int64_t{unit} * kUnitTokens * padded);
  } else {
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t token = first_token + r;
      for (int32_t d = 0; d < padded; d += 2) {
        std::memcpy(planes.keys + KeyIndex(token, d, padded), keys + r * padded + d,
                    2 * sizeof(BFloat16));
      }
      for (int32_t d = 0; d < dim; ++d) {
        planes.values[ValueIndex(token, d, padded)] = values[r * value_stride + d];
      }
    }
  }
  if (planes.stats != nullptr) {
    UpdateStats(keys, rows, padded, first_token % kUnitTokens == 0,
                planes.stats + StatsIndex(unit, 0, padded));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lserve::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(AppendUnitRows);

HeadPlanes PlanesOf(std::byte* page, const KvPageLayout& layout, int32_t head) {
  return {reinterpret_cast<BFloat16*>(page + layout.key_offset(head)),
          reinterpret_cast<BFloat16*>(page + layout.value_offset(head)),
          layout.score == PageScore::kMinMax
              ? reinterpret_cast<BFloat16*>(page + layout.stats_offset(head))
              : nullptr};
}

// Copies one head of a page that is not closed: keys, values and statistics.
void CopyHead(const std::byte* from, std::byte* to, const KvPageLayout& layout, int32_t head) {
  const auto plane = static_cast<size_t>(layout.plane_bytes());
  std::memcpy(to + layout.key_offset(head), from + layout.key_offset(head), plane);
  std::memcpy(to + layout.value_offset(head), from + layout.value_offset(head), plane);
  std::memcpy(to + layout.stats_offset(head), from + layout.stats_offset(head),
              static_cast<size_t>(layout.min_max_bytes()));
}

// Makes one head of a page of the pool from its 64 tokens in full. They may stand in that very
// page, if its format is not boxed.
void ClosePage(const KvPageLayout& layout, int32_t head, const std::byte* full, std::byte* closed) {
  const KvPageLayout open = layout.open();
  const auto* keys = reinterpret_cast<const uint16_t*>(full + open.key_offset(head));
  const auto* values = reinterpret_cast<const uint16_t*>(full + open.value_offset(head));
  if (layout.boxed()) {
    WriteValueCodes(layout, values, HeadCodes(layout, head, closed));
    std::memcpy(closed + layout.stats_offset(head), full + open.stats_offset(head),
                static_cast<size_t>(layout.min_max_bytes()));
  } else if (full != closed) {
    CopyHead(full, closed, open, head);
  }
  if (layout.sketch_bytes() > 0) {
    WriteKeyCodes(layout, keys, HeadCodes(layout, head, closed));
  }
}

std::byte* OpenPage(const RetrievalLane& lane, int32_t slot) {
  return lane.open + slot * lane.layout.open().page_bytes();
}

std::byte* ClosedPage(const RetrievalLane& lane, int32_t slot, int32_t page) {
  const int64_t id = lane.table[int64_t{slot} * lane.max_pages + page];
  return lane.pages + id * lane.layout.page_bytes();
}

std::byte* RingPage(const StreamingLane& lane, int32_t slot, int32_t page) {
  const int64_t entry =
      int64_t{slot} * (lane.sink_pages + lane.ring_pages) + StreamingRingSlot(lane, page);
  return lane.pages + lane.table[entry] * lane.layout.page_bytes();
}

// Rows [row, row + rows), which begin at `token` of one page, unit by unit.
void AppendRows(const RopeAppendParams& params, int64_t row, int32_t rows, int32_t kv_head,
                int32_t token, const HeadPlanes& planes) {
  while (rows > 0) {
    const int32_t part = std::min(rows, kUnitTokens - token % kUnitTokens);
    HWY_DYNAMIC_DISPATCH(AppendUnitRows)(params, row, part, kv_head, token, planes);
    row += part;
    token += part;
    rows -= part;
  }
}

void AppendDecodeRow(const RopeAppendParams& params, int32_t row, int32_t kv_head) {
  const int32_t slot = params.batch.row_slot[row];
  const int32_t position = params.batch.row_position[row];
  const int32_t page = position / kPageTokens;
  const int32_t token = position % kPageTokens;
  const int32_t retrieval_heads = params.retrieval.layout.heads;
  if (kv_head < retrieval_heads) {
    const RetrievalLane& lane = params.retrieval;
    std::byte* open = OpenPage(lane, slot);
    if (token == 0 && page > 0) {
      ClosePage(lane.layout, kv_head, open, ClosedPage(lane, slot, page - 1));
    }
    AppendRows(params, row, 1, kv_head, token, PlanesOf(open, lane.layout.open(), kv_head));
  } else {
    AppendRows(params, row, 1, kv_head, token,
               PlanesOf(RingPage(params.streaming, slot, page), params.streaming.layout,
                        kv_head - retrieval_heads));
  }
}

// The rows of a chunk that lie in `page`.
struct PageRows {
  PageRows(const PrefillChunk& chunk, int32_t page) {
    const int32_t begin = std::max(chunk.first_position, page * kPageTokens);
    const int32_t end = std::min(chunk.first_position + chunk.rows, (page + 1) * kPageTokens);
    row = chunk.first_row + (begin - chunk.first_position);
    rows = end - begin;
    token = begin % kPageTokens;
  }
  int64_t row;
  int32_t rows;
  int32_t token;
};

// Where a page that closes in the chunk's own step is filled: among the chunk pages if attention
// needs it in full, else in its place in the pool.
std::byte* FilledPage(const RetrievalLane& lane, const PrefillChunk& chunk, int32_t page) {
  if (!lane.layout.boxed()) {
    return ClosedPage(lane, chunk.slot, page);
  }
  const int64_t index = int64_t{chunk.first_chunk_page} + page - chunk.first_position / kPageTokens;
  return lane.chunk_pages + index * lane.layout.open().page_bytes();
}

// `index` counts the chunk's pages. The task of the first page does the last one too, if the last
// is another: both touch the open page. The last page's own task is empty then.
void AppendRetrievalPage(const RopeAppendParams& params, const PrefillChunk& chunk, int32_t index,
                         int32_t head) {
  const RetrievalLane& lane = params.retrieval;
  const KvPageLayout layout = lane.layout.open();
  const int32_t first_page = chunk.first_position / kPageTokens;
  const int32_t last_page = (chunk.first_position + chunk.rows - 1) / kPageTokens;
  const int32_t page = first_page + index;
  const auto append = [&](int32_t to_page, std::byte* to) {
    const PageRows part(chunk, to_page);
    AppendRows(params, part.row, part.rows, head, part.token, PlanesOf(to, layout, head));
  };
  const auto fill_and_close = [&](std::byte* filled) {
    append(page, filled);
    ClosePage(lane.layout, head, filled, ClosedPage(lane, chunk.slot, page));
  };
  if (index > 0) {
    if (page < last_page) {
      fill_and_close(FilledPage(lane, chunk, page));
    }
    return;
  }
  std::byte* open = OpenPage(lane, chunk.slot);
  const bool begun = chunk.first_position % kPageTokens != 0;
  if (!begun && page > 0) {
    ClosePage(lane.layout, head, open, ClosedPage(lane, chunk.slot, page - 1));
  }
  if (page < last_page) {
    std::byte* filled = FilledPage(lane, chunk, page);
    if (begun) {
      CopyHead(open, filled, layout, head);
    }
    fill_and_close(filled);
  }
  append(last_page, open);
}

void AppendStreamingPage(const RopeAppendParams& params, const PrefillChunk& chunk, int32_t index,
                         int32_t kv_head) {
  const StreamingLane& lane = params.streaming;
  const int32_t head = kv_head - params.retrieval.layout.heads;
  const int32_t page = chunk.first_position / kPageTokens + index;
  std::byte* to =
      lane.chunk_pages + int64_t{chunk.first_chunk_page + index} * lane.layout.page_bytes();
  if (index == 0 && chunk.first_position % kPageTokens != 0) {
    CopyHead(RingPage(lane, chunk.slot, page), to, lane.layout, head);
  }
  const PageRows part(chunk, page);
  AppendRows(params, part.row, part.rows, kv_head, part.token, PlanesOf(to, lane.layout, head));
}

}  // namespace

void RunRopeAppend(const RopeAppendParams& params, Team& team) {
  CHECK(params.head_dim <= kMaxHeadDim && params.q_heads % params.kv_heads == 0);
  const BatchView& batch = params.batch;
  const int64_t heads = params.kv_heads;
  const int64_t decode_tasks = batch.counts[kDecodeRows] * heads;
  int64_t task = team.Next();
  for (; task < decode_tasks; task = team.Next()) {
    AppendDecodeRow(params, static_cast<int32_t>(task / heads), static_cast<int32_t>(task % heads));
  }
  int64_t first_task = decode_tasks;
  for (int32_t c = 0; c < batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = batch.chunks[c];
    const int64_t pages = (chunk.first_position + chunk.rows - 1) / kPageTokens -
                          chunk.first_position / kPageTokens + 1;
    for (; task < first_task + pages * heads; task = team.Next()) {
      const auto index = static_cast<int32_t>((task - first_task) / heads);
      const auto head = static_cast<int32_t>((task - first_task) % heads);
      if (head < params.retrieval.layout.heads) {
        AppendRetrievalPage(params, chunk, index, head);
      } else {
        AppendStreamingPage(params, chunk, index, head);
      }
    }
    first_task += pages * heads;
  }
}

}  // namespace lserve::cpu
#endif  // HWY_ONCE
