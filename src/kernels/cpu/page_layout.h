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
// and a mask yield four neighbouring dimensions of 16 tokens: what a product of bytes takes.
#pragma once

#include <cstdint>

#include "kernels/kv_layout.h"

namespace lserve::cpu {

inline constexpr int32_t kUnitTokens = kLogicalPageTokens;

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

}  // namespace lserve::cpu
