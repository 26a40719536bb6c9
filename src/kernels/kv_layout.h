// How keys, values and key statistics lie in a page of the two-lane cache. Plain values, computed
// once; usable in device code.
//
// A page holds kPageTokens tokens of one layer and one lane. In 16-bit (or float32) formats:
//   keys    [KV head][kPageTokens][padded head dim]
//   values  [KV head][kPageTokens][padded head dim]
//   stats   what the selector knows of the keys, a block a KV head:
//     kMinMax  [kPageTokens / kLogicalPageTokens][min, max][padded head dim], of the keys' type
//     kSketch  box [lo, hi][padded head dim] float16, then a 2-bit code for every key element
//              (sketch.h); of a closed page only
// In a boxed format of b bits (boxed.h), for closed pages only, a key's code is b / 2 planes of 2
// bits, all in one order, of which the uppermost is the sketch:
//   keys    [KV head][b / 2 - 1 planes, from upper to lower]
//   values  [KV head] grids [kPageTokens] (ValueGrid), then a b-bit code for every element
//   sketch  [KV head] box and the uppermost plane, with any page score
//   stats   kMinMax as above, in bf16; kSketch: the sketch itself
// A 16-token unit is contiguous in every plane. The order of the elements inside a unit is the
// backend's own (the CPU pairs them for its dot-product instructions); a page's bytes are copied
// between pages of one backend, and ExportPages / ImportPages translate to [token][dim].
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace lserve {

inline constexpr int32_t kPageTokens = 64;         // physical page; also the KV block of prefill
inline constexpr int32_t kLogicalPageTokens = 16;  // what a page score summarises
inline constexpr int32_t kQueryBlockTokens = 128;  // query block of prefill, at absolute multiples

// What a closed page's keys and values are stored in. kFloat32 serves float32 activations (ref),
// the others bf16 activations. The boxed formats kInt8 and kInt4 read back as bf16.
enum class KvFormat : int32_t { kBFloat16, kFloat32, kInt8, kInt4 };

// What the selector knows of a page's keys.
enum class PageScore : int32_t {
  kNone,    // dense attention: no statistics
  kMinMax,  // element-wise minimum and maximum of every logical page (LServe, section 3.5.1)
  kSketch,  // each channel's range over the page, and every key's place in it in 2 bits
};

constexpr bool IsBoxed(KvFormat format) {
  return format == KvFormat::kInt8 || format == KvFormat::kInt4;
}

// What a page of this format is while it is open, and reads back as: the activations' type.
constexpr KvFormat OpenFormat(KvFormat format) {
  return IsBoxed(format) ? KvFormat::kBFloat16 : format;
}

// Bytes of an element of an open page.
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

  constexpr bool boxed() const { return IsBoxed(format); }
  // Bits of a value's code in a boxed format.
  constexpr int32_t value_bits() const { return format == KvFormat::kInt8 ? 8 : 4; }
  // Bits of a key's code, the sketch included: 2 where there is only the sketch.
  constexpr int32_t key_bits() const { return boxed() ? value_bits() : 2; }

  // ---- Bytes of one head
  // Keys or values in full.
  constexpr int64_t plane_bytes() const {
    return int64_t{kPageTokens} * padded_head_dim * KvElementBytes(format);
  }
  // 2 bits of every key's code.
  constexpr int64_t code_plane_bytes() const { return int64_t{kPageTokens} * padded_head_dim / 4; }
  constexpr int64_t grid_bytes() const { return int64_t{kPageTokens} * 4; }
  constexpr int64_t key_bytes() const {
    return boxed() ? (key_bits() / 2 - 1) * code_plane_bytes() : plane_bytes();
  }
  constexpr int64_t value_bytes() const {
    return boxed() ? grid_bytes() + int64_t{kPageTokens} * padded_head_dim * value_bits() / 8
                   : plane_bytes();
  }
  constexpr int64_t box_bytes() const { return int64_t{2} * padded_head_dim * 2; }
  constexpr int64_t sketch_bytes() const {
    return boxed() || score == PageScore::kSketch ? box_bytes() + code_plane_bytes() : 0;
  }
  constexpr int64_t min_max_bytes() const {
    return score == PageScore::kMinMax ? int64_t{kPageTokens / kLogicalPageTokens} * 2 *
                                             padded_head_dim * KvElementBytes(format)
                                       : 0;
  }

  // ---- Where they lie
  constexpr int64_t key_offset(int32_t head) const { return head * key_bytes(); }
  constexpr int64_t value_offset(int32_t head) const {
    return heads * key_bytes() + head * value_bytes();
  }
  // Boxed: the grids lie at value_offset, the codes behind them.
  constexpr int64_t value_codes_offset(int32_t head) const {
    return value_offset(head) + grid_bytes();
  }
  constexpr int64_t box_offset(int32_t head) const {
    return heads * (key_bytes() + value_bytes()) + head * sketch_bytes();
  }
  // Plane `plane` of the keys' codes, uppermost bits first: plane 0 is the sketch's.
  constexpr int64_t codes_offset(int32_t head, int32_t plane = 0) const {
    return plane == 0 ? box_offset(head) + box_bytes()
                      : key_offset(head) + (plane - 1) * code_plane_bytes();
  }
  // What the selector reads: minima and maxima, or under kSketch the box and the codes behind it.
  constexpr int64_t stats_offset(int32_t head) const {
    return score == PageScore::kSketch
               ? box_offset(head)
               : heads * (key_bytes() + value_bytes() + sketch_bytes()) + head * min_max_bytes();
  }
  constexpr int64_t page_bytes() const {
    return heads * (key_bytes() + value_bytes() + sketch_bytes() + min_max_bytes());
  }

  // The same heads in a page that still grows: in full, with minima and maxima but no sketch.
  constexpr KvPageLayout open() const {
    return {heads, head_dim, padded_head_dim, OpenFormat(format),
            score == PageScore::kMinMax ? PageScore::kMinMax : PageScore::kNone};
  }
};

constexpr KvPageLayout MakeKvPageLayout(int32_t heads, int32_t head_dim, KvFormat format,
                                        PageScore score) {
  return KvPageLayout{heads, head_dim, PaddedHeadDim(head_dim), format, score};
}

}  // namespace lserve
