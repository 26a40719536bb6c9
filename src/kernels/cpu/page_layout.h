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
// and a sketch puts the codes of two neighbouring dimensions in a nibble, and the nibbles of a
// unit's 16 tokens in two dwords, even tokens in the first:
//   box [lo, hi][padded head dim] float16, codes [unit][padded head dim / 2][2] dwords
// so that one shift by lanes yields 16 tokens' nibbles, each an index into a table of 16 sums.
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

// The dword that holds the code of (token, dim) in one head of a page, and the code's lowest bit.
constexpr int64_t SketchIndex(int32_t token, int32_t dim, int32_t padded_head_dim) {
  return int64_t{token / kUnitTokens} * padded_head_dim + dim / 2 * 2 + token % 2;
}
constexpr int32_t SketchShift(int32_t token, int32_t dim) {
  return token % kUnitTokens / 2 * 4 + dim % 2 * 2;
}

}  // namespace lserve::cpu
