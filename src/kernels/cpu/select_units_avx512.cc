// Page scores with AVX-512 bf16 dot products: the four logical pages of a page at a time.
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

}  // namespace

SelectVariant Avx512SelectVariant() {
  return {"avx512-bf16", HasAvx512Bf16, MinMax, HighwaySelectVariant().sketch};
}

}  // namespace lserve::cpu
