// Prefill attention with AVX-512 bf16 dot products, for CPUs without tiles. The same blocks of the
// cache in the same order as the AMX variant; 4 rows x 64 keys, then 4 rows x 64 dims, in
// registers.
#include "kernels/cpu/attend_prefill_avx512.h"  // before other headers: it includes the intrinsics

#include <bit>

namespace lserve::cpu {
namespace {

LSERVE_TARGET_AVX512_BF16 void Scores(const PrefillTile& tile) {
  const int32_t dims = tile.padded_head_dim;
  const int64_t unit = int64_t{16} * dims;
  for (int32_t b = 0; b < tile.block_count; ++b) {
    for (int32_t row = 0; row < kRowTile; row += 4) {
      __m512 sums[4][4];
      for (auto& line : sums) {
        for (auto& sum : line) {
          sum = _mm512_setzero_ps();
        }
      }
      const uint16_t* q = tile.q + int64_t{row} * dims;
      const uint16_t* keys = tile.blocks[b].keys;
      for (int32_t d = 0; d < dims; d += 2, q += 2, keys += 32) {
        const __m512bh k0 = LoadBf16(keys);
        const __m512bh k1 = LoadBf16(keys + unit);
        const __m512bh k2 = LoadBf16(keys + 2 * unit);
        const __m512bh k3 = LoadBf16(keys + 3 * unit);
#pragma GCC unroll 4
        for (int32_t r = 0; r < 4; ++r) {
          const __m512bh pair = BroadcastPair(q + r * dims);
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], k0, pair);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], k1, pair);
          sums[r][2] = _mm512_dpbf16_ps(sums[r][2], k2, pair);
          sums[r][3] = _mm512_dpbf16_ps(sums[r][3], k3, pair);
        }
      }
      for (int32_t r = 0; r < 4; ++r) {
        for (int32_t i = 0; i < 4; ++i) {
          _mm512_store_ps(tile.scores + (row + r) * kScoreStride + b * 64 + i * 16, sums[r][i]);
        }
      }
    }
  }
}

// output[row .. row + 4][d .. d + 16 * kVectors] += P V
template <int kVectors>
LSERVE_TARGET_AVX512_BF16 void AddValues(const PrefillTile& tile, uint32_t weighed, int32_t row,
                                         int32_t d) {
  const int32_t dims = tile.padded_head_dim;
  float* output = tile.output + int64_t{row} * dims + d;
  __m512 sums[4][kVectors];
#pragma GCC unroll 4
  for (int32_t r = 0; r < 4; ++r) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < kVectors; ++i) {
      sums[r][i] = _mm512_load_ps(output + r * dims + i * 16);
    }
  }
  for (int32_t b = 0; b < tile.block_count; ++b) {
    if ((weighed >> b & 1) == 0) {
      continue;
    }
    const uint16_t* values = tile.blocks[b].values + d * 2;
    const uint16_t* p = tile.probabilities + row * kProbabilityStride + b * 64;
    for (int32_t t = 0; t < 64; t += 2, values += 2 * dims, p += 2) {
#pragma GCC unroll 4
      for (int32_t i = 0; i < kVectors; ++i) {
        const __m512bh v = LoadBf16(values + i * 32);
#pragma GCC unroll 4
        for (int32_t r = 0; r < 4; ++r) {
          sums[r][i] = _mm512_dpbf16_ps(sums[r][i], v, BroadcastPair(p + r * kProbabilityStride));
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int32_t r = 0; r < 4; ++r) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < kVectors; ++i) {
      _mm512_store_ps(output + r * dims + i * 16, sums[r][i]);
    }
  }
}

LSERVE_TARGET_AVX512_BF16 int32_t Run(const PrefillTile& tile) {
  const FlushDenormals flush;
  Scores(tile);
  const uint32_t weighed = StepSoftmax(tile);
  const int32_t dims = tile.padded_head_dim;
  for (int32_t row = 0; weighed != 0 && row < kRowTile; row += 4) {
    int32_t d = 0;
    for (; d + 64 <= dims; d += 64) {
      AddValues<4>(tile, weighed, row, d);
    }
    if (d < dims) {  // the padded head size is a multiple of 32
      AddValues<2>(tile, weighed, row, d);
    }
  }
  return std::popcount(weighed);
}

void Nothing() {}

}  // namespace

PrefillVariant Avx512PrefillVariant() {
  return {"avx512-bf16", HasAvx512Bf16, Nothing, Run, Nothing};
}

}  // namespace lserve::cpu
