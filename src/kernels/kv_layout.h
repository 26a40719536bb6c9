// How keys, values and key statistics lie in a page of the two-lane cache. Plain values, computed
// once; usable in device code.
//
// A page holds kPageTokens tokens of one layer and one lane:
//   keys    [KV head][kPageTokens][padded head dim]
//   values  [KV head][kPageTokens][padded head dim]
//   stats   what the selector knows of the keys, a block a KV head:
//     kMinMax  [kPageTokens / kLogicalPageTokens][min, max][padded head dim], of the keys' type
//     kSketch  box [lo, hi][padded head dim] float16, then a 2-bit code for every key element
//              (sketch.h); of a closed page only
// A 16-token unit is contiguous in keys and in values. The order of the elements inside a unit is
// the backend's own (the CPU pairs them for its dot-product instructions); a page's bytes are
// copied between pages of one backend, and ExportPages / ImportPages translate to [token][dim].
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace lserve {

inline constexpr int32_t kPageTokens = 64;         // physical page; also the KV block of prefill
inline constexpr int32_t kLogicalPageTokens = 16;  // what a page score summarises
inline constexpr int32_t kQueryBlockTokens = 128;  // query block of prefill, at absolute multiples

// What a closed page's keys and values are stored in. kFloat32 serves float32 activations (ref).
enum class KvFormat : int32_t { kBFloat16, kFloat32 };

// What the selector knows of a page's keys.
enum class PageScore : int32_t {
  kNone,    // dense attention: no statistics
  kMinMax,  // element-wise minimum and maximum of every logical page (LServe, section 3.5.1)
  kSketch,  // each channel's range over the page, and every key's place in it in 2 bits
};

constexpr int64_t KvElementBytes(KvFormat format) { return format == KvFormat::kFloat32 ? 4 : 2; }

// Head size rounded up to a multiple of 32; the padding is zero. 80 -> 96.
constexpr int32_t PaddedHeadDim(int32_t head_dim) { return (head_dim + 31) / 32 * 32; }

// Rows of [head_dim] that a KV head's statistics of one page are in canonical order.
constexpr int32_t StatsRows(PageScore score) {
  switch (score) {
    case PageScore::kNone: return 0;
    case PageScore::kMinMax: return 2 * (kPageTokens / kLogicalPageTokens);
    case PageScore::kSketch: return 2 + kPageTokens;
  }
  return 0;
}

struct KvPageLayout {
  int32_t heads = 0;            // KV heads of this lane in this layer; may be 0
  int32_t head_dim = 0;         // 1 to 256
  int32_t padded_head_dim = 0;  // PaddedHeadDim(head_dim)
  KvFormat format = KvFormat::kBFloat16;
  PageScore score = PageScore::kNone;

  constexpr int64_t plane_bytes() const {
    return int64_t{kPageTokens} * padded_head_dim * KvElementBytes(format);
  }
  constexpr int64_t box_bytes() const { return int64_t{2} * padded_head_dim * 2; }
  constexpr int64_t stats_bytes() const {
    switch (score) {
      case PageScore::kNone: return 0;
      case PageScore::kMinMax:
        return int64_t{kPageTokens / kLogicalPageTokens} * 2 * padded_head_dim *
               KvElementBytes(format);
      case PageScore::kSketch: return box_bytes() + int64_t{kPageTokens} * padded_head_dim / 4;
    }
    return 0;
  }
  constexpr int64_t key_offset(int32_t head) const { return head * plane_bytes(); }
  constexpr int64_t value_offset(int32_t head) const { return (heads + head) * plane_bytes(); }
  constexpr int64_t stats_offset(int32_t head) const {
    return 2 * heads * plane_bytes() + head * stats_bytes();
  }
  // kSketch: the box lies at stats_offset, the codes behind it.
  constexpr int64_t codes_offset(int32_t head) const { return stats_offset(head) + box_bytes(); }
  constexpr int64_t page_bytes() const { return heads * (2 * plane_bytes() + stats_bytes()); }
};

constexpr KvPageLayout MakeKvPageLayout(int32_t heads, int32_t head_dim, KvFormat format,
                                        PageScore score) {
  return KvPageLayout{heads, head_dim, PaddedHeadDim(head_dim), format, score};
}

}  // namespace lserve
