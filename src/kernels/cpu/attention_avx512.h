// Pieces that the AVX-512 attention kernels share. Functions with a target attribute: call them
// only where HasAvx512Bf16() said yes. x86 only.
#pragma once

// GCC 12 takes the undefined vectors inside its own intrinsics for uninitialised variables.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#include "kernels/cpu/instructions.h"

#define LSERVE_TARGET_AVX512_BF16 \
  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")))
#define LSERVE_TARGET_AMX_BF16 \
  __attribute__((target(       \
      "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16")))

namespace lserve::cpu {

// 2^x for x <= 0, relative error below 3e-6; exactly 1 at 0 and exactly 0 at minus infinity.
// 2^floor(x) by scalef, the rest by a polynomial (minimax on [0, 1), fixed to 1 at 0).
LSERVE_TARGET_AVX512_BF16 inline __m512 Exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0.0134266838f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0522424728f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.241280198f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693044841f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

LSERVE_TARGET_AVX512_BF16 inline float Exp2Scalar(float x) {
  return _mm512_cvtss_f32(Exp2(_mm512_set1_ps(x)));
}

// Rounds 2 x 16 floats, `low` first, to 32 bf16 in memory.
LSERVE_TARGET_AVX512_BF16 inline void StoreBf16(uint16_t* to, __m512 low, __m512 high) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
  _mm512_storeu_si512(to, reinterpret_cast<const __m512i&>(rounded));
}

LSERVE_TARGET_AVX512_BF16 inline __m512bh LoadBf16(const uint16_t* from) {
  const __m512i bits = _mm512_loadu_si512(from);
  return reinterpret_cast<const __m512bh&>(bits);
}

// The two bf16 at `from` in every lane.
LSERVE_TARGET_AVX512_BF16 inline __m512bh BroadcastPair(const uint16_t* from) {
  int32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  const __m512i bits = _mm512_set1_epi32(pair);
  return reinterpret_cast<const __m512bh&>(bits);
}

// For the life of the object, results too small for a normal float are zero: 2^x of far-away keys
// would otherwise take a slow path.
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  const uint32_t saved_;
};

}  // namespace lserve::cpu
