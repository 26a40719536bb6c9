// Page scores with AVX-512: minima and maxima by dot products of bf16, sketches by dot products of
// bytes (VNNI, which every processor with the bf16 products has).
#include "kernels/cpu/boxed_avx512.h"  // before other headers: it includes the intrinsics

#include <limits>

#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/select_units_kernel.h"

namespace lserve::cpu {
namespace {

constexpr int32_t kAhead = 2;  // pages that prefetching is ahead of the scores

LSERVE_TARGET_AVX512_BF16 inline __m128 MaximaOfLanes(const __m512 v[4]) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512 abcd =
      _mm512_max_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

LSERVE_TARGET_AVX512_BF16 void MinMax(const PageScoreRun& run) {
  const int32_t width = 2 * run.padded_head_dim;  // bf16 of a logical page
  const __m128 scale = _mm_set1_ps(run.scale);
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

// Takes kHeads query heads into the best key score of each of the page's units: a step multiplies
// the codes of 16 tokens and 4 dimensions by a head's 4 weights. Units go together so that enough
// sums are under way to hide the latency of a product.
template <int kHeads>
LSERVE_TARGET_AVX512_BF16 void ScoreCodes(const FoldedQueries& heads, const std::byte* codes,
                                          const std::byte* next, int32_t padded, __m512 best[4]) {
  constexpr int kUnits = 4 / kHeads;
  const int64_t unit_bytes = int64_t{padded} * 4;
  const __m512i code_bits = _mm512_set1_epi8(3);
  for (int first = 0; first < 4; first += kUnits) {
    __m512i high[kUnits][kHeads];
    __m512i low[kUnits][kHeads];
    for (int u = 0; u < kUnits; ++u) {
      for (int g = 0; g < kHeads; ++g) {
        high[u][g] = _mm512_setzero_si512();
        low[u][g] = _mm512_setzero_si512();
      }
    }
    for (int32_t dim = 0; dim < padded; dim += kSketchWordDims) {
      __m512i line[kUnits];
      for (int u = 0; u < kUnits; ++u) {
        const int64_t offset = (first + u) * unit_bytes + int64_t{dim} * 4;
        line[u] = _mm512_loadu_si512(codes + offset);
        Prefetch(next + offset);
      }
      for (int32_t quad = 0; quad < kSketchWordDims; quad += 4) {
        for (int u = 0; u < kUnits; ++u) {
          const __m512i code = _mm512_and_si512(line[u], code_bits);
          line[u] = _mm512_srli_epi16(line[u], 2);
          for (int g = 0; g < kHeads; ++g) {
            high[u][g] =
                _mm512_dpbusd_epi32(high[u][g], code, BroadcastDword(heads.high[g] + dim + quad));
            low[u][g] =
                _mm512_dpbusd_epi32(low[u][g], code, BroadcastDword(heads.low[g] + dim + quad));
          }
        }
      }
    }
    for (int u = 0; u < kUnits; ++u) {
      for (int g = 0; g < kHeads; ++g) {
        const __m512 score = FoldedScores(heads, g, high[u][g], low[u][g]);
        best[first + u] = _mm512_max_ps(score, best[first + u]);  // a NaN score yields `best`
      }
    }
  }
}

template <int kHeads>
LSERVE_TARGET_AVX512_BF16 void ScoreHeads(const PageScoreRun& run, int32_t first_head,
                                          const std::byte* sketch, const std::byte* next,
                                          FoldedQueries* folded, __m512 best[4]) {
  const int32_t padded = run.padded_head_dim;
  const int64_t box_bytes = int64_t{padded} * 4;
  FoldBox<kHeads>(run.queries + first_head * padded, reinterpret_cast<const Float16*>(sketch),
                  reinterpret_cast<const Float16*>(next), padded, 1.0f / kSketchLevels, folded);
  ScoreCodes<kHeads>(*folded, sketch + box_bytes, next + box_bytes, padded, best);
}

LSERVE_TARGET_AVX512_BF16 void Sketch(const PageScoreRun& run) {
  FoldedQueries folded;
  for (int32_t page = 0; page < run.pages; ++page) {
    const std::byte* sketch = run.stats[page];
    const std::byte* next = run.stats[page + kAhead < run.pages ? page + kAhead : page];
    __m512 best[4];
    for (__m512& unit : best) {
      unit = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    }
    for (int32_t g = 0; g < run.group;) {
      const int32_t left = run.group - g;
      const int32_t heads = left >= kMostFolded ? kMostFolded : left >= 2 ? 2 : 1;
      const auto score = heads == kMostFolded ? ScoreHeads<kMostFolded>
                         : heads == 2         ? ScoreHeads<2>
                                              : ScoreHeads<1>;
      score(run, g, sketch, next, &folded, best);
      g += heads;
    }
    _mm_storeu_ps(run.scores + page * 4, _mm_mul_ps(MaximaOfLanes(best), _mm_set1_ps(run.scale)));
  }
}

}  // namespace

SelectVariant Avx512SelectVariant() { return {"avx512-vnni", HasAvx512Bf16, MinMax, Sketch}; }

}  // namespace lserve::cpu
