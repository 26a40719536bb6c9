// The softmax of prefill attention in AVX-512, for kernels that form the products in their own way.
#pragma once

#include "kernels/cpu/attention_avx512.h"  // before other headers: it includes the intrinsics

#include <limits>

#include "kernels/cpu/attend_prefill_kernel.h"

namespace lserve::cpu {

// -inf over the scores of a block that the row at `position` does not see.
LSERVE_TARGET_AVX512_BF16 inline void MaskScores(const PrefillTile& tile, const PrefillBlock& block,
                                                 int32_t position, float* scores) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i own = _mm512_set1_epi32(position);
  const __m512i sink = _mm512_set1_epi32(tile.sink_tokens);
  const __m512i oldest = _mm512_set1_epi32(position - tile.local_tokens);
  for (int32_t t = 0; t < 64; t += 16) {
    const __m512i keys = _mm512_add_epi32(_mm512_set1_epi32(block.first_position + t), lanes);
    const __mmask16 causal = _mm512_cmple_epi32_mask(keys, own);
    const __mmask16 kept =
        _mm512_cmplt_epi32_mask(keys, sink) | _mm512_cmpgt_epi32_mask(keys, oldest);
    const __mmask16 seen = causal & kept;
    _mm512_store_ps(scores + t,
                    _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()),
                                       seen, _mm512_load_ps(scores + t)));
  }
}

// tile.scores [row][block_count * 64] -> tile.probabilities, and the running maximum, sum and
// output of every row.
LSERVE_TARGET_AVX512_BF16 inline void StepSoftmax(const PrefillTile& tile) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  const int32_t tokens = tile.block_count * 64;
  const __m512 scale = _mm512_set1_ps(tile.scale);
  for (int32_t row = 0; row < kRowTile; ++row) {
    float* scores = tile.scores + row * kScoreStride;
    uint16_t* probabilities = tile.probabilities + row * kProbabilityStride;
    for (int32_t b = 0; b < tile.block_count; ++b) {
      if (tile.blocks[b].edge) {
        MaskScores(tile, tile.blocks[b], tile.positions[row], scores + b * 64);
      }
    }
    __m512 m0 = _mm512_load_ps(scores);
    __m512 m1 = _mm512_load_ps(scores + 16);
    for (int32_t t = 32; t < tokens; t += 32) {
      m0 = _mm512_max_ps(m0, _mm512_load_ps(scores + t));
      m1 = _mm512_max_ps(m1, _mm512_load_ps(scores + t + 16));
    }
    const float old_max = tile.row_max[row];
    const float step_max = _mm512_reduce_max_ps(_mm512_max_ps(m0, m1));
    const float new_max = step_max > old_max ? step_max : old_max;
    if (new_max == kMinusInf) {  // nothing seen yet
      for (int32_t t = 0; t < tokens; t += 32) {
        _mm512_storeu_si512(probabilities + t, _mm512_setzero_si512());
      }
      continue;
    }
    float sum = tile.row_sum[row];
    if (new_max > old_max) {
      const float shrink = Exp2Scalar((old_max - new_max) * tile.scale);
      sum *= shrink;
      tile.row_max[row] = new_max;
      float* output = tile.output + row * tile.padded_head_dim;
      for (int32_t d = 0; d < tile.padded_head_dim; d += 16) {
        _mm512_store_ps(output + d,
                        _mm512_mul_ps(_mm512_load_ps(output + d), _mm512_set1_ps(shrink)));
      }
    }
    const __m512 base = _mm512_set1_ps(new_max * tile.scale);
    __m512 sum0 = _mm512_setzero_ps();
    __m512 sum1 = _mm512_setzero_ps();
    for (int32_t t = 0; t < tokens; t += 32) {
      const __m512 p0 = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + t), scale, base));
      const __m512 p1 = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + t + 16), scale, base));
      sum0 = _mm512_add_ps(sum0, p0);
      sum1 = _mm512_add_ps(sum1, p1);
      StoreBf16(probabilities + t, p0, p1);
    }
    tile.row_sum[row] = sum + _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
  }
}

}  // namespace lserve::cpu
