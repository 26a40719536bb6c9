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
// and a sketch's codes put the 16 tokens of a unit side by side in one dword, token 0 lowest:
//   box [lo, hi][padded head dim] float16, codes [unit][padded head dim] dwords
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

// Index of the dword with the codes of 16 tokens in `dim`, in the codes of one head of a page.
constexpr int64_t SketchIndex(int32_t unit, int32_t dim, int32_t padded_head_dim) {
  return int64_t{unit} * padded_head_dim + dim;
}

}  // namespace lserve::cpu
