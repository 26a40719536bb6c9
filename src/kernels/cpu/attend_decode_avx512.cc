// Decode attention with AVX-512 bf16 dot products: 4 units (64 keys) at a time, up to 4 query heads
// in registers, while the units two rounds ahead are prefetched. Boxed units are multiplied as
// codes: keys with the query folded into their box (boxed_avx512.h), values with probabilities into
// which their tokens' scales are folded.
#include "kernels/cpu/boxed_avx512.h"  // before other headers: it includes the intrinsics

#include <bit>
#include <limits>

#include "kernels/cpu/attend_decode_kernel.h"

namespace lserve::cpu {
namespace {

constexpr int32_t kUnits = 4;  // units of one round
constexpr int32_t kAhead = 8;  // prefetch distance in units
constexpr int32_t kBoxedAhead = 2;
// In a record: what every dim of the output begins with, the middles of the boxed values' grids.
constexpr int32_t kRecordMiddles = 2;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Calls run<kHeads>(first head) for the heads of a group: fours, then a pair, then one.
template <typename Run>
void ForHeads(int32_t group, Run run) {
  int32_t head = 0;
  for (; group - head >= 4; head += 4) {
    run.template operator()<4>(head);
  }
  if (group - head >= 2) {
    run.template operator()<2>(head);
    head += 2;
  }
  if (head < group) {
    run.template operator()<1>(head);
  }
}

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
  for (int32_t unit = segment.boxed_count; unit < segment.unit_count; unit += kUnits) {
    const int32_t left = segment.unit_count - unit;
    const int32_t units = left < kUnits ? left : kUnits;
    ForHeads(segment.group,
             [&]<int kHeads>(int32_t head) { ScoreRound<kHeads>(segment, head, unit, units); });
  }
}

// Fetches the key codes of a unit, but for its box.
LSERVE_TARGET_AVX512_BF16 inline void PrefetchKeyCodes(const BoxedUnit& unit, int32_t planes,
                                                       int32_t padded) {
  for (int32_t plane = 0; plane < planes; ++plane) {
    for (int32_t i = 0; i < padded; i += 16) {
      Prefetch(unit.planes[plane] + i);
    }
  }
}

// Fetches values and grids of a unit.
LSERVE_TARGET_AVX512_BF16 inline void PrefetchValueCodes(const BoxedUnit& unit, int32_t bytes) {
  Prefetch(unit.grids);
  for (int32_t i = 0; i < bytes; i += 64) {
    Prefetch(unit.values + i);
  }
}

// Scores of kHeads folded query heads, `head` the first, against a boxed unit.
template <int kHeads, int kPlanes>
LSERVE_TARGET_AVX512_BF16 inline void ScoreCodes(const DecodeSegment& segment, int32_t head,
                                                 int32_t unit, const FoldedQueries& folded) {
  const __m512i two_bits = _mm512_set1_epi8(3);
  const BoxedUnit& boxed = segment.boxed[unit];
  __m512i high[kHeads];
  __m512i low[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    high[h] = low[h] = _mm512_setzero_si512();
  }
  for (int32_t dim = 0; dim < segment.padded_head_dim; dim += kSketchWordDims) {
    __m512i lines[kPlanes];
    for (int plane = 0; plane < kPlanes; ++plane) {
      lines[plane] = _mm512_loadu_si512(boxed.planes[plane] + dim);
    }
    for (int32_t quad = 0; quad < kSketchWordDims; quad += 4) {
      __m512i code = _mm512_setzero_si512();
      for (int plane = 0; plane < kPlanes; ++plane) {
        // 0xEA: (a & b) | c
        code = _mm512_ternarylogic_epi32(lines[plane], two_bits, _mm512_slli_epi16(code, 2), 0xEA);
        lines[plane] = _mm512_srli_epi16(lines[plane], 2);
      }
      for (int h = 0; h < kHeads; ++h) {
        high[h] = _mm512_dpbusd_epi32(high[h], code, BroadcastDword(folded.high[h] + dim + quad));
        low[h] = _mm512_dpbusd_epi32(low[h], code, BroadcastDword(folded.low[h] + dim + quad));
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    _mm512_store_ps(segment.scores + (int64_t{head + h} * segment.unit_count + unit) * 16,
                    FoldedScores(folded, h, high[h], low[h]));
  }
}

template <int kHeads>
LSERVE_TARGET_AVX512_BF16 void ScoreBoxed(const DecodeSegment& segment, int32_t head) {
  const int32_t padded = segment.padded_head_dim;
  const int32_t planes = segment.code_bits / 2;
  const int32_t value_bytes = padded * kUnitTokens * segment.code_bits / 8;
  const float cell = 1.0f / static_cast<float>(1 << segment.code_bits);
  alignas(64) float queries[kHeads * kMaxHeadDim];
  for (int h = 0; h < kHeads; ++h) {
    for (int32_t d = 0; d < padded; d += 16) {
      const __m256i q = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(segment.q + int64_t{head + h} * padded + d));
      _mm512_store_ps(queries + h * padded + d,
                      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(q), 16)));
    }
  }
  FoldedQueries folded;
  const Float16* box = nullptr;
  for (int32_t unit = 0; unit < segment.boxed_count; ++unit) {
    const BoxedUnit& boxed = segment.boxed[unit];
    const BoxedUnit& next =
        segment.boxed[unit + kBoxedAhead < segment.boxed_count ? unit + kBoxedAhead : unit];
    PrefetchKeyCodes(next, planes, padded);
    PrefetchValueCodes(boxed, value_bytes);
    if (boxed.box != box) {
      box = boxed.box;
      FoldBox<kHeads>(queries, box, next.box, padded, cell, &folded);
    }
    if (planes == 2) {
      ScoreCodes<kHeads, 2>(segment, head, unit, folded);
    } else {
      ScoreCodes<kHeads, 4>(segment, head, unit, folded);
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

// Codes of a value count from the middle one, so that the weight's rounding meets a small number.
constexpr int32_t MiddleCode(int32_t bits) { return 1 << (bits - 1); }

// Scores to probabilities, those of boxed units times their tokens' scales; the record's maximum,
// sum and middles.
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
  const __m512 middle_code = _mm512_set1_ps(static_cast<float>(MiddleCode(segment.code_bits)));
  __m512 sum = _mm512_setzero_ps();
  __m512 middles = _mm512_setzero_ps();
  for (int32_t i = 0; i < count; ++i) {
    __m512 p = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + i * 16), scale, base));
    sum = _mm512_add_ps(sum, p);
    if (i < segment.boxed_count) {
      const __m512i grids = _mm512_loadu_si512(segment.boxed[i].grids);
      const __m512 zero = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(grids));
      const __m512 step = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(grids, 16)));
      middles = _mm512_fmadd_ps(p, _mm512_fmadd_ps(step, middle_code, zero), middles);
      p = _mm512_mul_ps(p, step);
    }
    const __m256bh rounded = _mm512_cvtneps_pbh(p);
    _mm256_store_si256(reinterpret_cast<__m256i*>(probabilities + i * 16),
                       reinterpret_cast<const __m256i&>(rounded));
  }
  record[0] = max;
  record[1] = _mm512_reduce_add_ps(sum);
  record[kRecordMiddles] = _mm512_reduce_add_ps(middles);
}

// bf16 of -8 to 7, twice.
struct CodeTable {
  alignas(64) uint16_t words[32];
  constexpr CodeTable() : words() {
    for (int32_t i = 0; i < 32; ++i) {
      const auto value = static_cast<float>(i % 16 - MiddleCode(4));
      words[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    }
  }
};
constexpr CodeTable kCodeTable;

// 16 pairs of codes, each less the middle code, as pairs of bf16.
template <int kBits>
LSERVE_TARGET_AVX512_BF16 inline __m512bh PairsOfCodes(const std::byte* from) {
  if constexpr (kBits == 4) {
    const __m512i codes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    // A word's lowest 5 bits are looked up; the lower word's fifth is its neighbour's.
    const __m512i words = _mm512_or_si512(codes, _mm512_slli_epi32(codes, 12));
    const __m512i pairs = _mm512_permutexvar_epi16(words, _mm512_load_si512(kCodeTable.words));
    return reinterpret_cast<const __m512bh&>(pairs);
  } else {
    const __m512i codes = _mm512_xor_si512(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))),
        _mm512_set1_epi32(0x8080));
    const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(codes, 24), 24));
    const __m512 odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(codes, 16), 24));
    // Exact: 8 significant bits. 0xEA: (a & b) | c
    const __m512i pairs = _mm512_ternarylogic_epi32(
        _mm512_castps_si512(odd), _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000)),
        _mm512_srli_epi32(_mm512_castps_si512(even), 16), 0xEA);
    return reinterpret_cast<const __m512bh&>(pairs);
  }
}

// Adds the boxed units' values, from dim d on, to kHeads rows of sums.
template <int kHeads, int kVectors, int kBits>
LSERVE_TARGET_AVX512_BF16 inline void AddCodes(const DecodeSegment& segment, int32_t head,
                                               int32_t d, __m512 (&sums)[kHeads][kVectors]) {
  constexpr int64_t kPairBytes = kBits / 4;
  const int64_t row_bytes = segment.padded_head_dim * kPairBytes;
  const int64_t stride = int64_t{segment.unit_count} * 16;
  const uint16_t* p = segment.probabilities + head * stride;
  for (int32_t i = 0; i < segment.boxed_count; ++i) {
    const std::byte* values = segment.boxed[i].values + d * kPairBytes;
    for (int32_t t = 0; t < 16; t += 2, values += row_bytes, p += 2) {
#pragma GCC unroll 4
      for (int32_t v = 0; v < kVectors; ++v) {
        const __m512bh x = PairsOfCodes<kBits>(values + v * 16 * kPairBytes);
#pragma GCC unroll 4
        for (int32_t h = 0; h < kHeads; ++h) {
          sums[h][v] = _mm512_dpbf16_ps(sums[h][v], x, BroadcastPair(p + h * stride));
        }
      }
    }
  }
}

// Output of kHeads query heads, dims [d, d + 16 * kVectors).
template <int kHeads, int kVectors>
LSERVE_TARGET_AVX512_BF16 void AddValues(const DecodeSegment& segment, int32_t head, int32_t d) {
  const int32_t dims = segment.padded_head_dim;
  const int32_t count = segment.unit_count;
  __m512 sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int32_t h = 0; h < kHeads; ++h) {
    const float* record = segment.records + (head + h) * segment.record_stride;
#pragma GCC unroll 4
    for (int32_t v = 0; v < kVectors; ++v) {
      sums[h][v] = _mm512_set1_ps(record[kRecordMiddles]);
    }
  }
  if (segment.boxed_count > 0) {
    if (segment.code_bits == 4) {
      AddCodes<kHeads, kVectors, 4>(segment, head, d, sums);
    } else {
      AddCodes<kHeads, kVectors, 8>(segment, head, d, sums);
    }
  }
  const uint16_t* p = segment.probabilities + (int64_t{head} * count + segment.boxed_count) * 16;
  for (int32_t i = segment.boxed_count; i < count; ++i) {
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
  if (segment.boxed_count > 0) {
    ForHeads(segment.group, [&]<int kHeads>(int32_t head) { ScoreBoxed<kHeads>(segment, head); });
  }
  Scores(segment);
  for (int32_t head = 0; head < segment.group; ++head) {
    Softmax(segment, head);
  }
  ForHeads(segment.group, [&]<int kHeads>(int32_t head) { AddAllValues<kHeads>(segment, head); });
}

}  // namespace

DecodeVariant Avx512DecodeVariant() { return {"avx512-bf16", HasAvx512Bf16, Run, true}; }

}  // namespace lserve::cpu
