// Page scores with AVX-512: minima and maxima by bf16 dot products, sketches by table look-up; the
// four 16-token units of a page at a time.
#include "kernels/cpu/attention_avx512.h"  // before other headers: it includes the intrinsics

#include <limits>

#include "kernels/cpu/select_units_kernel.h"

namespace lserve::cpu {
namespace {

// Sums of the lanes of four vectors.
LSERVE_TARGET_AVX512_BF16 inline __m128 SumsOfLanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

LSERVE_TARGET_AVX512_BF16 void MinMax(const PageScoreRun& run) {
  const int32_t width = 2 * run.padded_head_dim;  // bf16 of a logical page
  const __m128 scale = _mm_set1_ps(run.scale);
  constexpr int32_t kAhead = 2;  // pages
  for (int32_t page = 0; page < run.pages; ++page) {
    const auto* stats = reinterpret_cast<const uint16_t*>(run.stats[page]);
    const auto* next = reinterpret_cast<const uint16_t*>(
        run.stats[page + kAhead < run.pages ? page + kAhead : page]);
    __m128 best = _mm_set1_ps(-std::numeric_limits<float>::infinity());
    for (int32_t g = 0; g < run.group; ++g) {
      const uint16_t* q = run.q_pairs + g * width;
      __m512 s0 = _mm512_setzero_ps();
      __m512 s1 = s0;
      __m512 s2 = s0;
      __m512 s3 = s0;
      for (int32_t i = 0; i < width; i += 32) {
        const __m512bh x = LoadBf16(q + i);
        s0 = _mm512_dpbf16_ps(s0, LoadBf16(stats + i), x);
        s1 = _mm512_dpbf16_ps(s1, LoadBf16(stats + width + i), x);
        s2 = _mm512_dpbf16_ps(s2, LoadBf16(stats + 2 * width + i), x);
        s3 = _mm512_dpbf16_ps(s3, LoadBf16(stats + 3 * width + i), x);
        if (g == 0) {
          _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(next + width + i), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(next + 2 * width + i), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(next + 3 * width + i), _MM_HINT_T0);
        }
      }
      // A NaN in the first operand yields the second.
      best = _mm_max_ps(_mm_mul_ps(SumsOfLanes(s0, s1, s2, s3), scale), best);
    }
    _mm_storeu_ps(run.scores + page * 4, best);
  }
}

LSERVE_TARGET_AVX512_BF16 inline __m512 LoadFloat16(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Turns one head's query into weights of the codes; returns the part that all tokens share.
LSERVE_TARGET_AVX512_BF16 inline float FoldBox(const float* query, const std::byte* sketch,
                                               int32_t padded, float* weights) {
  const auto* box = reinterpret_cast<const uint16_t*>(sketch);
  const __m512 quarter = _mm512_set1_ps(0.25f);
  const __m512 half = _mm512_set1_ps(0.5f);
  __m512 sum = _mm512_setzero_ps();
  for (int32_t i = 0; i < padded; i += 16) {
    const __m512 q = _mm512_loadu_ps(query + i);
    const __m512 lo = LoadFloat16(box + i);
    const __m512 step = _mm512_mul_ps(_mm512_sub_ps(LoadFloat16(box + padded + i), lo), quarter);
    sum = _mm512_fmadd_ps(q, _mm512_fmadd_ps(half, step, lo), sum);
    _mm512_storeu_ps(weights + i, _mm512_mul_ps(q, step));
  }
  return _mm512_reduce_add_ps(sum);
}

// Takes kHeads query heads into the best key score of each of the page's units. A pair of
// dimensions has 16 pairs of codes: a head's 16 sums are a table, a token's nibble its index.
template <int kHeads>
LSERVE_TARGET_AVX512_BF16 void ScoreCodes(const float* weights, const float* shared,
                                          const std::byte* codes, const std::byte* next,
                                          int32_t padded, __m512 best[4]) {
  const __m512 first = _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  const __m512 second = _mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512i shifts =
      _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
  __m512 sums[4][kHeads];
  for (int u = 0; u < 4; ++u) {
    for (int g = 0; g < kHeads; ++g) {
      sums[u][g] = _mm512_set1_ps(shared[g]);
    }
  }
  const int64_t unit_bytes = int64_t{padded} * 4;
  for (int32_t dim = 0; dim < padded; dim += 2) {
    const std::byte* words = codes + int64_t{dim} * 4;
    if (dim % 16 == 0) {  // a line of each unit
      for (int u = 0; u < 4; ++u) {
        _mm_prefetch(reinterpret_cast<const char*>(next + u * unit_bytes + int64_t{dim} * 4),
                     _MM_HINT_T0);
      }
    }
    __m512 table[kHeads];
    for (int g = 0; g < kHeads; ++g) {
      const float* pair = weights + g * padded + dim;
      table[g] = _mm512_fmadd_ps(_mm512_set1_ps(pair[1]), second,
                                 _mm512_mul_ps(_mm512_set1_ps(pair[0]), first));
    }
    for (int u = 0; u < 4; ++u) {
      int64_t both;
      __builtin_memcpy(&both, words + u * unit_bytes, sizeof(both));
      const __m512i nibbles = _mm512_srlv_epi32(_mm512_set1_epi64(both), shifts);
      for (int g = 0; g < kHeads; ++g) {
        sums[u][g] = _mm512_add_ps(sums[u][g], _mm512_permutexvar_ps(nibbles, table[g]));
      }
    }
  }
  for (int u = 0; u < 4; ++u) {
    for (int g = 0; g < kHeads; ++g) {
      best[u] = _mm512_max_ps(sums[u][g], best[u]);  // a NaN sum yields `best`
    }
  }
}

LSERVE_TARGET_AVX512_BF16 void Sketch(const PageScoreRun& run) {
  const int32_t padded = run.padded_head_dim;
  const int64_t box_bytes = int64_t{padded} * 4;
  for (int32_t page = 0; page < run.pages; ++page) {
    const std::byte* sketch = run.stats[page];
    const std::byte* codes = sketch + box_bytes;
    const std::byte* next = run.stats[page + 1 < run.pages ? page + 1 : page] + box_bytes;
    __m512 best[4];
    for (__m512& unit : best) {
      unit = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    }
    for (int32_t g = 0; g < run.group;) {
      const int32_t left = run.group - g;
      const int32_t heads = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      float shared[4];
      for (int32_t h = 0; h < heads; ++h) {
        shared[h] =
            FoldBox(run.queries + (g + h) * padded, sketch, padded, run.weights + h * padded);
      }
      const auto score = heads == 4 ? ScoreCodes<4> : heads == 2 ? ScoreCodes<2> : ScoreCodes<1>;
      score(run.weights, shared, codes, next, padded, best);
      g += heads;
    }
    for (int u = 0; u < 4; ++u) {
      run.scores[page * 4 + u] = _mm512_reduce_max_ps(best[u]) * run.scale;
    }
  }
}

}  // namespace

SelectVariant Avx512SelectVariant() { return {"avx512-bf16", HasAvx512Bf16, MinMax, Sketch}; }

}  // namespace lserve::cpu
