// Decode attention with AVX-512 bf16 dot products: 4 units (64 keys) at a time, up to 4 query heads
// in registers, while the units two rounds ahead are prefetched.
#include "kernels/cpu/attention_avx512.h"  // before other headers: it includes the intrinsics

#include <limits>

#include "kernels/cpu/attend_decode_kernel.h"

namespace lserve::cpu {
namespace {

constexpr int32_t kUnits = 4;  // units of one round
constexpr int32_t kAhead = 8;  // prefetch distance in units
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Scores of kHeads query heads from `head` on against kWide units from `unit` on. The first heads
// of a group fetch what comes next.
template <int kHeads, int kWide>
LSERVE_TARGET_AVX512_BF16 void ScoreUnits(const DecodeSegment& segment, int32_t head,
                                          int32_t unit) {
  const int32_t dims = segment.padded_head_dim;
  const uint16_t* q = segment.q + int64_t{head} * dims;
  const uint16_t* keys[kWide];
  const char* next[kWide];
  for (int32_t i = 0; i < kWide; ++i) {
    keys[i] = segment.units[unit + i].keys;
    // Past the end of the keys come the segment's values.
    const int32_t ahead = unit + i + kAhead;
    const int32_t count = segment.unit_count;
    next[i] = reinterpret_cast<const char*>(
        ahead < count ? segment.units[ahead].keys
                      : segment.units[ahead - count < count ? ahead - count : 0].values);
  }
  __m512 sums[kHeads][kWide];
#pragma GCC unroll 4
  for (int32_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < kWide; ++i) {
      sums[h][i] = _mm512_setzero_ps();
    }
  }
  for (int32_t d = 0; d < dims; d += 2) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < kWide; ++i) {
      const __m512bh k = LoadBf16(keys[i] + d * 16);
      if (head == 0) {
        _mm_prefetch(next[i] + d * 32, _MM_HINT_T0);
      }
#pragma GCC unroll 4
      for (int32_t h = 0; h < kHeads; ++h) {
        sums[h][i] = _mm512_dpbf16_ps(sums[h][i], k, BroadcastPair(q + h * dims + d));
      }
    }
  }
#pragma GCC unroll 4
  for (int32_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < kWide; ++i) {
      _mm512_store_ps(segment.scores + (int64_t{head + h} * segment.unit_count + unit + i) * 16,
                      sums[h][i]);
    }
  }
}

template <int kHeads>
LSERVE_TARGET_AVX512_BF16 void ScoreRound(const DecodeSegment& segment, int32_t head, int32_t unit,
                                          int32_t units) {
  if (units == kUnits) {
    ScoreUnits<kHeads, kUnits>(segment, head, unit);
    return;
  }
  for (int32_t i = 0; i < units; ++i) {
    ScoreUnits<kHeads, 1>(segment, head, unit + i);
  }
}

LSERVE_TARGET_AVX512_BF16 void Scores(const DecodeSegment& segment) {
  for (int32_t unit = 0; unit < segment.unit_count; unit += kUnits) {
    const int32_t left = segment.unit_count - unit;
    const int32_t units = left < kUnits ? left : kUnits;
    for (int32_t head = 0; head < segment.group;) {
      const int32_t heads = segment.group - head;
      if (heads >= 4) {
        ScoreRound<4>(segment, head, unit, units);
        head += 4;
      } else if (heads >= 2) {
        ScoreRound<2>(segment, head, unit, units);
        head += 2;
      } else {
        ScoreRound<1>(segment, head, unit, units);
        head += 1;
      }
    }
  }
}

LSERVE_TARGET_AVX512_BF16 __m512 Masked(const DecodeSegment& segment, const DecodeUnit& unit,
                                        __m512 scores) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i keys = _mm512_add_epi32(_mm512_set1_epi32(unit.first_position), lanes);
  const __mmask16 causal = _mm512_cmple_epi32_mask(keys, _mm512_set1_epi32(segment.position));
  const __mmask16 kept =
      _mm512_cmplt_epi32_mask(keys, _mm512_set1_epi32(segment.sink_tokens)) |
      _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(segment.position - segment.local_tokens));
  return _mm512_mask_mov_ps(_mm512_set1_ps(kMinusInf), causal & kept, scores);
}

// Scores to probabilities; the record's maximum and sum.
LSERVE_TARGET_AVX512_BF16 void Softmax(const DecodeSegment& segment, int32_t head) {
  const int32_t count = segment.unit_count;
  float* scores = segment.scores + int64_t{head} * count * 16;
  uint16_t* probabilities = segment.probabilities + int64_t{head} * count * 16;
  float* record = segment.records + head * segment.record_stride;
  __m512 largest = _mm512_set1_ps(kMinusInf);
  for (int32_t i = 0; i < count; ++i) {
    __m512 s = _mm512_load_ps(scores + i * 16);
    if (segment.units[i].edge) {
      s = Masked(segment, segment.units[i], s);
      _mm512_store_ps(scores + i * 16, s);
    }
    largest = _mm512_max_ps(largest, s);
  }
  const float max = _mm512_reduce_max_ps(largest);
  const __m512 scale = _mm512_set1_ps(segment.scale);
  // A segment of which nothing is seen has probabilities of zero and takes no part.
  const __m512 base = _mm512_set1_ps(max == kMinusInf ? 0.0f : max * segment.scale);
  __m512 sum = _mm512_setzero_ps();
  for (int32_t i = 0; i < count; ++i) {
    const __m512 p = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + i * 16), scale, base));
    sum = _mm512_add_ps(sum, p);
    const __m256bh rounded = _mm512_cvtneps_pbh(p);
    _mm256_store_si256(reinterpret_cast<__m256i*>(probabilities + i * 16),
                       reinterpret_cast<const __m256i&>(rounded));
  }
  record[0] = max;
  record[1] = _mm512_reduce_add_ps(sum);
}

// Output of kHeads query heads, dims [d, d + 16 * kVectors).
template <int kHeads, int kVectors>
LSERVE_TARGET_AVX512_BF16 void AddValues(const DecodeSegment& segment, int32_t head, int32_t d) {
  const int32_t dims = segment.padded_head_dim;
  const int32_t count = segment.unit_count;
  __m512 sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int32_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int32_t v = 0; v < kVectors; ++v) {
      sums[h][v] = _mm512_setzero_ps();
    }
  }
  const uint16_t* p = segment.probabilities + int64_t{head} * count * 16;
  for (int32_t i = 0; i < count; ++i) {
    const uint16_t* values = segment.units[i].values + d * 2;
    const int32_t ahead = i + kAhead < count ? i + kAhead : i;
    const uint16_t* next = segment.units[ahead].values + d * 2;
    for (int32_t t = 0; t < 16; t += 2, values += 2 * dims, next += 2 * dims, p += 2) {
#pragma GCC unroll 4
      for (int32_t v = 0; v < kVectors; ++v) {
        const __m512bh x = LoadBf16(values + v * 32);
        if (head == 0) {
          _mm_prefetch(reinterpret_cast<const char*>(next + v * 32), _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (int32_t h = 0; h < kHeads; ++h) {
          sums[h][v] = _mm512_dpbf16_ps(sums[h][v], x, BroadcastPair(p + h * count * 16));
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int32_t h = 0; h < kHeads; ++h) {
    float* output = segment.records + (head + h) * segment.record_stride + kRecordOutput + d;
#pragma GCC unroll 4
    for (int32_t v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(output + v * 16, sums[h][v]);
    }
  }
}

template <int kHeads>
LSERVE_TARGET_AVX512_BF16 void AddAllValues(const DecodeSegment& segment, int32_t head) {
  int32_t d = 0;
  for (; d + 64 <= segment.padded_head_dim; d += 64) {
    AddValues<kHeads, 4>(segment, head, d);
  }
  if (d < segment.padded_head_dim) {  // a multiple of 32
    AddValues<kHeads, 2>(segment, head, d);
  }
}

LSERVE_TARGET_AVX512_BF16 void Run(const DecodeSegment& segment) {
  const FlushDenormals flush;
  Scores(segment);
  for (int32_t head = 0; head < segment.group; ++head) {
    Softmax(segment, head);
  }
  for (int32_t head = 0; head < segment.group;) {
    const int32_t heads = segment.group - head;
    if (heads >= 4) {
      AddAllValues<4>(segment, head);
      head += 4;
    } else if (heads >= 2) {
      AddAllValues<2>(segment, head);
      head += 2;
    } else {
      AddAllValues<1>(segment, head);
      head += 1;
    }
  }
}

}  // namespace

DecodeVariant Avx512DecodeVariant() { return {"avx512-bf16", HasAvx512Bf16, Run}; }

}  // namespace lserve::cpu
