// Queries against a page's box: what selection by sketches and decode attention over boxed pages
// share. With k = lo + (c + 1/2) step, q k is the sum over dims of q (lo + step / 2) + (q step) c:
// the first part and the weights q step are made once a page, and the codes c meet the weights in
// products of bytes (VNNI). Call only where HasAvx512Bf16() said yes. x86 only.
#pragma once

#include "kernels/cpu/attention_avx512.h"  // before other headers: it includes the intrinsics

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/page_layout.h"

namespace lserve::cpu {

inline constexpr int32_t kMostFolded = 4;  // query heads folded together

// Sums of the lanes of four vectors.
LSERVE_TARGET_AVX512_BF16 inline __m128 SumsOfLanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline void Prefetch(const void* line) {
  _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
}

LSERVE_TARGET_AVX512_BF16 inline __m512 LoadFloat16(const Float16* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Four neighbouring bytes in every lane.
LSERVE_TARGET_AVX512_BF16 inline __m512i BroadcastDword(const int8_t* from) {
  int32_t bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  return _mm512_set1_epi32(bytes);
}

// Query heads against one box: a token's score is shared[head] + step * sum over dims of
// weight[head][d] * code[d], with integer weights of 16 bits. They are rounded to 2^-16 of the
// largest, less than the rounding of q to bf16 changes them.
struct FoldedQueries {
  // A weight is 256 * high + low: the two rows of signed bytes that a byte product takes.
  alignas(64) int8_t high[kMostFolded][kMaxHeadDim];
  alignas(64) int8_t low[kMostFolded][kMaxHeadDim];
  alignas(16) float shared[kMostFolded];
  float step;
};

// queries: [kHeads, padded]; box: [lo, hi][padded], of 1 / cell cells. next: a box to fetch.
template <int kHeads>
LSERVE_TARGET_AVX512_BF16 inline void FoldBox(const float* queries, const Float16* box,
                                              const Float16* next, int32_t padded, float cell,
                                              FoldedQueries* folded) {
  constexpr float kLargest = 127.0f * 256.0f;
  alignas(64) float weights[kHeads][kMaxHeadDim];
  const __m512 cells = _mm512_set1_ps(cell);
  const __m512 half = _mm512_set1_ps(0.5f);
  __m512 sums[kMostFolded] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                              _mm512_setzero_ps()};
  __m512 largest = _mm512_setzero_ps();
  for (int32_t i = 0; i < padded; i += 16) {
    const __m512 lo = LoadFloat16(box + i);
    const __m512 step = _mm512_mul_ps(_mm512_sub_ps(LoadFloat16(box + padded + i), lo), cells);
    const __m512 middle = _mm512_fmadd_ps(half, step, lo);
    Prefetch(next + 2 * i);
    for (int g = 0; g < kHeads; ++g) {
      const __m512 q = _mm512_loadu_ps(queries + g * padded + i);
      const __m512 weight = _mm512_mul_ps(q, step);
      sums[g] = _mm512_fmadd_ps(q, middle, sums[g]);
      largest = _mm512_max_ps(_mm512_abs_ps(weight), largest);
      _mm512_store_ps(weights[g] + i, weight);
    }
  }
  _mm_store_ps(folded->shared, SumsOfLanes(sums[0], sums[1], sums[2], sums[3]));
  const float most = _mm512_reduce_max_ps(largest);
  folded->step = most / kLargest;
  const __m512 scale = _mm512_set1_ps(most > 0.0f ? kLargest / most : 0.0f);
  for (int g = 0; g < kHeads; ++g) {
    for (int32_t i = 0; i < padded; i += 16) {
      const __m512i weight =
          _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(weights[g] + i), scale));
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(weight, _mm512_set1_epi32(128)), 8);
      _mm_store_si128(reinterpret_cast<__m128i*>(folded->high[g] + i), _mm512_cvtepi32_epi8(high));
      _mm_store_si128(reinterpret_cast<__m128i*>(folded->low[g] + i), _mm512_cvtepi32_epi8(weight));
    }
  }
}

// 16 scores from the sums of products with the high and the low bytes.
LSERVE_TARGET_AVX512_BF16 inline __m512 FoldedScores(const FoldedQueries& folded, int head,
                                                     __m512i high, __m512i low) {
  // In floats: of 8-bit codes the sum may leave 32 bits.
  const __m512 sum =
      _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(low));
  return _mm512_fmadd_ps(sum, _mm512_set1_ps(folded.step), _mm512_set1_ps(folded.shared[head]));
}

}  // namespace lserve::cpu
