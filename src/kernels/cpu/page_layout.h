// The order of elements inside a page of the CPU backend (bf16 only). Free functions.
//
// A 16-token unit of keys pairs neighbouring dimensions, tokens side by side:
//   [padded head dim / 2][16 tokens][2 dims]
// so that one vector of 16 dwords times a broadcast pair of query elements adds to 16 scores, and
// 16 such rows are one AMX tile of the score product. A unit of values pairs neighbouring tokens:
//   [8 token pairs][padded head dim][2 tokens]
// so that a broadcast pair of probabilities adds to 16 output dimensions, and 16 rows (two units)
// are one AMX tile of the value product. Statistics pair minimum and maximum:
//   [logical page][padded head dim][min, max]
// and a sketch puts the codes of 16 dimensions of a token in a dword, those of a unit's 16 tokens
// side by side:
//   box [lo, hi][padded head dim] float16, codes [unit][padded head dim / 16][16 tokens] dwords
// Byte j of a dword holds dimensions j, j + 4, j + 8 and j + 12, lowest bits first, so that a shift
// and a mask yield four neighbouring dimensions of 16 tokens: what a product of bytes takes. All
// planes of boxed keys lie so. Codes of boxed values pair neighbouring tokens in a byte (int4) or
// in two (int8), the even token in the lower bits, as values in full pair them:
//   [32 token pairs][padded head dim]
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/boxed.h"
#include "kernels/kv_layout.h"

namespace lserve::cpu {

inline constexpr int32_t kUnitTokens = kLogicalPageTokens;
inline constexpr int32_t kMaxHeadDim = 256;

// Index of (token, dim) in the key plane of one head of a page.
constexpr int64_t KeyIndex(int32_t token, int32_t dim, int32_t padded_head_dim) {
  return int64_t{token / kUnitTokens} * kUnitTokens * padded_head_dim +
         int64_t{dim / 2} * (2 * kUnitTokens) + (token % kUnitTokens) * 2 + dim % 2;
}

// Index of (token, dim) in the value plane of one head of a page.
constexpr int64_t ValueIndex(int32_t token, int32_t dim, int32_t padded_head_dim) {
  return int64_t{token / 2} * 2 * padded_head_dim + int64_t{dim} * 2 + token % 2;
}

// Index of the minimum of `dim` in the statistics of one head of a page; the maximum follows it.
constexpr int64_t StatsIndex(int32_t logical_page, int32_t dim, int32_t padded_head_dim) {
  return (int64_t{logical_page} * padded_head_dim + dim) * 2;
}

inline constexpr int32_t kSketchWordDims = 16;  // dimensions whose codes share a dword

// The dword that holds the code of (token, dim) in one head of a page, and the code's lowest bit.
constexpr int64_t SketchIndex(int32_t token, int32_t dim, int32_t padded_head_dim) {
  return int64_t{token / kUnitTokens} * padded_head_dim +
         int64_t{dim / kSketchWordDims} * kUnitTokens + token % kUnitTokens;
}
constexpr int32_t SketchShift(int32_t dim) { return dim % 4 * 8 + dim % kSketchWordDims / 4 * 2; }

// The byte or pair of bytes that holds the codes of value (token, dim) and of its pair.
constexpr int64_t ValueCodeIndex(int32_t token, int32_t dim, int32_t padded_head_dim) {
  return int64_t{token / 2} * padded_head_dim + dim;
}

// Where one head's codes lie in a closed page.
struct HeadCodes {
  HeadCodes(const KvPageLayout& layout, int32_t head, std::byte* page)
      : box(reinterpret_cast<Float16*>(page + layout.box_offset(head))),
        plane_count(layout.key_bits() / 2),
        grids(reinterpret_cast<ValueGrid*>(page + layout.value_offset(head))),
        values(page + layout.value_codes_offset(head)) {
    for (int32_t plane = 0; plane < plane_count; ++plane) {
      planes[plane] = reinterpret_cast<uint32_t*>(page + layout.codes_offset(head, plane));
    }
  }

  Float16* box;              // [lo, hi][padded head dim]
  uint32_t* planes[4] = {};  // of keys, uppermost bits first
  int32_t plane_count;       // 1: a sketch
  ValueGrid* grids;          // [token], of a boxed page
  std::byte* values;         // of a boxed page
};

}  // namespace lserve::cpu
