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

// Lane by lane the maxima of `a` and `b`, whose 32-bit or 64-bit elements they interleave.
LSERVE_TARGET_AVX512_BF16 inline __m512 MaxOfSingles(__m512 a, __m512 b) {
  return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
LSERVE_TARGET_AVX512_BF16 inline __m512 MaxOfPairs(__m512 a, __m512 b) {
  const __m512d x = _mm512_castps_pd(a);
  const __m512d y = _mm512_castps_pd(b);
  return _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

// The largest of 64 scores of each of 16 rows.
LSERVE_TARGET_AVX512_BF16 inline __m512 RowMaxima(const float* scores) {
  __m512 quads[4];  // [4 rows] in each 128-bit lane, whose maxima are theirs
#pragma GCC unroll 4
  for (int32_t quad = 0; quad < 4; ++quad) {
    __m512 rows[4];
#pragma GCC unroll 4
    for (int32_t r = 0; r < 4; ++r, scores += kScoreStride) {
      rows[r] =
          _mm512_max_ps(_mm512_max_ps(_mm512_load_ps(scores), _mm512_load_ps(scores + 16)),
                        _mm512_max_ps(_mm512_load_ps(scores + 32), _mm512_load_ps(scores + 48)));
    }
    quads[quad] = MaxOfPairs(MaxOfSingles(rows[0], rows[1]), MaxOfSingles(rows[2], rows[3]));
  }
  const __m512 low = _mm512_max_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x44),
                                   _mm512_shuffle_f32x4(quads[0], quads[1], 0xEE));
  const __m512 high = _mm512_max_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x44),
                                    _mm512_shuffle_f32x4(quads[2], quads[3], 0xEE));
  return _mm512_max_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                       _mm512_shuffle_f32x4(low, high, 0xDD));
}

// The blocks that rows weigh under their thresholds, if they leave out any, and the running maxima.
template <bool kLeavesOut>
LSERVE_TARGET_AVX512_BF16 inline void LookAtScores(const PrefillTile& tile, StepScores* step) {
  const __m512 scale = _mm512_set1_ps(tile.scale);
  for (int32_t row = 0; row < kRowTile; row += 16) {
    __m512 maxima[kStepBlocks];
    __m512 running = _mm512_loadu_ps(tile.row_max + row);
    for (int32_t b = 0; b < tile.block_count; ++b) {
      maxima[b] = RowMaxima(tile.scores + row * kScoreStride + b * 64);
      running = _mm512_max_ps(running, maxima[b]);
    }
    _mm512_store_ps(step->row_max + row, running);
    for (int32_t b = 0; kLeavesOut && b < tile.block_count; ++b) {
      // Not a number, and left out, where the row has seen nothing yet.
      const __m512 weight = _mm512_mul_ps(_mm512_sub_ps(maxima[b], running), scale);
      const __mmask16 weighs =
          _mm512_cmp_ps_mask(weight, _mm512_loadu_ps(tile.thresholds + row), _CMP_GE_OQ);
      step->rows[b] |= static_cast<uint32_t>(weighs) << row;
      step->weighed |= (weighs != 0 ? 1u : 0u) << b;
    }
  }
  if (!kLeavesOut) {
    step->weighed = (1u << tile.block_count) - 1;
  }
}

// tile.scores [row][block_count * 64] -> tile.probabilities of the blocks that some row weighs, and
// the running maximum, sum and output of every row. Returns bit b: some row weighs block b.
template <bool kLeavesOut>
LSERVE_TARGET_AVX512_BF16 inline uint32_t StepSoftmax(const PrefillTile& tile) {
  for (int32_t b = 0; b < tile.block_count; ++b) {
    for (int32_t row = 0; tile.blocks[b].edge && row < kRowTile; ++row) {
      MaskScores(tile, tile.blocks[b], tile.positions[row],
                 tile.scores + row * kScoreStride + b * 64);
    }
  }
  StepScores step;
  LookAtScores<kLeavesOut>(tile, &step);
  if (step.weighed == 0) {
    return 0;
  }
  const __m512 scale = _mm512_set1_ps(tile.scale);
  for (int32_t row = 0; row < kRowTile; ++row) {
    const float* scores = tile.scores + row * kScoreStride;
    uint16_t* probabilities = tile.probabilities + row * kProbabilityStride;
    const float old_max = tile.row_max[row];
    const float new_max = step.row_max[row];
    if (new_max == -std::numeric_limits<float>::infinity()) {  // nothing seen yet
      for (int32_t t = 0; t < tile.block_count * 64; t += 32) {
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
    for (int32_t b = 0; b < tile.block_count; ++b) {
      if (kLeavesOut && !step.Weighs(row, b)) {
        _mm512_storeu_si512(probabilities + b * 64, _mm512_setzero_si512());
        _mm512_storeu_si512(probabilities + b * 64 + 32, _mm512_setzero_si512());
        continue;
      }
      for (int32_t t = b * 64; t < (b + 1) * 64; t += 32) {
        const __m512 p0 = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + t), scale, base));
        const __m512 p1 = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + t + 16), scale, base));
        sum0 = _mm512_add_ps(sum0, p0);
        sum1 = _mm512_add_ps(sum1, p1);
        StoreBf16(probabilities + t, p0, p1);
      }
    }
    tile.row_sum[row] = sum + _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
  }
  return step.weighed;
}

LSERVE_TARGET_AVX512_BF16 inline uint32_t StepSoftmax(const PrefillTile& tile) {
  return tile.thresholds == nullptr ? StepSoftmax<false>(tile) : StepSoftmax<true>(tile);
}

}  // namespace lserve::cpu
