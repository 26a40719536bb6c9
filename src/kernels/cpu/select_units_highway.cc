// Page scores in float32 on any CPU. bf16 pairs of the statistics are widened by a shift and a
// mask; the codes of a sketch by shifts of their own for the lanes.

// The targets worth compiling for: the baseline, AVX2 and AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select_units_highway.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attention_highway-inl.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/select_units_kernel.h"
#include "kernels/sketch.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr int32_t kPageUnits = kPageTokens / kUnitTokens;
constexpr int32_t kLanes = static_cast<int32_t>(hn::MaxLanes(FloatTag()));
constexpr int32_t kUnitVectors = kUnitTokens / kLanes;

void RunMinMaxScores(const PageScoreRun& run) {
  const FloatTag d;
  const int32_t width = 2 * run.padded_head_dim;  // bf16 of a logical page
  for (int32_t j = 0; j < kPageUnits * run.pages; ++j) {
    const auto* stats =
        reinterpret_cast<const uint16_t*>(run.stats[j / kPageUnits]) + j % kPageUnits * width;
    float best = kMinusInf;
    for (int32_t g = 0; g < run.group; ++g) {
      const uint16_t* q = run.q_pairs + g * width;
      FloatVec low = hn::Zero(d);
      FloatVec high = hn::Zero(d);
      for (int32_t i = 0; i < width; i += 2 * kLanes) {
        const WordVec pairs = LoadPairs(stats + i);
        const WordVec signs = LoadPairs(q + i);
        low = hn::MulAdd(First(pairs), First(signs), low);
        high = hn::MulAdd(Second(pairs), Second(signs), high);
      }
      const float score = hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high))) * run.scale;
      best = score > best ? score : best;  // false for a NaN
    }
    run.scores[j] = best;
  }
}

// The larger; `best` where x is NaN.
HWY_INLINE FloatVec Better(FloatVec x, FloatVec best) {
  return hn::IfThenElse(hn::Gt(x, best), x, best);
}

// Turns one head's query into weights of the codes; returns the part that all tokens share.
HWY_INLINE float FoldBox(const float* query, const std::byte* sketch, int32_t padded,
                         float* weights) {
  const FloatTag d;
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  const auto* box = reinterpret_cast<const hwy::float16_t*>(sketch);
  const FloatVec quarter = hn::Set(d, 1.0f / float{kSketchLevels});
  const FloatVec half = hn::Set(d, 0.5f);
  FloatVec sum = hn::Zero(d);
  for (int32_t i = 0; i < padded; i += kLanes) {
    const FloatVec q = hn::LoadU(d, query + i);
    const FloatVec lo = hn::PromoteTo(d, hn::LoadU(d16, box + i));
    const FloatVec hi = hn::PromoteTo(d, hn::LoadU(d16, box + padded + i));
    const FloatVec step = hn::Mul(hn::Sub(hi, lo), quarter);
    sum = hn::MulAdd(q, hn::MulAdd(half, step, lo), sum);
    hn::StoreU(hn::Mul(q, step), d, weights + i);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Takes kHeads query heads (weights: rows of padded_head_dim) into the page's unit scores. Units go
// together as far as accumulators allow, to hide the latency of the sums.
template <int32_t kHeads>
HWY_INLINE void ScoreCodes(const float* weights, const float* shared, const uint32_t* codes,
                           int32_t padded, float scale, float* scores) {
  constexpr int32_t kUnits = std::clamp(8 / (kUnitVectors * kHeads), 1, kPageUnits);
  const FloatTag d;
  const WordTag du;
  const hn::RebindToSigned<FloatTag> di;
  const WordVec three = hn::Set(du, 3u);
  for (int32_t first = 0; first < kPageUnits; first += kUnits) {
    FloatVec sums[kUnits][kUnitVectors][kHeads];
    for (int32_t u = 0; u < kUnits; ++u) {
      for (int32_t i = 0; i < kUnitVectors; ++i) {
        for (int32_t g = 0; g < kHeads; ++g) {
          sums[u][i][g] = hn::Zero(d);
        }
      }
    }
    for (int32_t dim = 0; dim < padded; ++dim) {
      for (int32_t u = 0; u < kUnits; ++u) {
        const uint32_t* words = codes + SketchIndex((first + u) * kUnitTokens, dim, padded);
        for (int32_t i = 0; i < kUnitVectors; ++i) {
          const WordVec bits =
              hn::ShiftRightSame(hn::LoadU(du, words + i * kLanes), SketchShift(dim));
          const FloatVec code = hn::ConvertTo(d, hn::BitCast(di, hn::And(bits, three)));
          for (int32_t g = 0; g < kHeads; ++g) {
            FloatVec& sum = sums[u][i][g];
            sum = hn::MulAdd(hn::Set(d, weights[g * padded + dim]), code, sum);
          }
        }
      }
    }
    for (int32_t u = 0; u < kUnits; ++u) {
      FloatVec best = hn::Set(d, kMinusInf);
      for (int32_t g = 0; g < kHeads; ++g) {
        for (int32_t i = 0; i < kUnitVectors; ++i) {
          best = Better(hn::Add(sums[u][i][g], hn::Set(d, shared[g])), best);
        }
      }
      const float score = hn::GetLane(hn::MaxOfLanes(d, best)) * scale;
      scores[first + u] = std::max(scores[first + u], score);
    }
  }
}

void RunSketchScores(const PageScoreRun& run) {
  const int32_t padded = run.padded_head_dim;
  constexpr int32_t kMaxHeads = 4;
  alignas(64) float weights[kMaxHeads * kMaxHeadDim];
  for (int32_t page = 0; page < run.pages; ++page) {
    float* scores = run.scores + page * kPageUnits;
    std::fill(scores, scores + kPageUnits, kMinusInf);
    const std::byte* sketch = run.stats[page];
    const auto* codes = reinterpret_cast<const uint32_t*>(sketch + 4 * padded);
    for (int32_t g = 0; g < run.group;) {
      const int32_t left = run.group - g;
      const int32_t heads = left >= kMaxHeads ? kMaxHeads : left >= 2 ? 2 : 1;
      float shared[kMaxHeads];
      for (int32_t h = 0; h < heads; ++h) {
        shared[h] = FoldBox(run.queries + (g + h) * padded, sketch, padded, weights + h * padded);
      }
      if (heads == kMaxHeads) {
        ScoreCodes<kMaxHeads>(weights, shared, codes, padded, run.scale, scores);
      } else if (heads == 2) {
        ScoreCodes<2>(weights, shared, codes, padded, run.scale, scores);
      } else {
        ScoreCodes<1>(weights, shared, codes, padded, run.scale, scores);
      }
      g += heads;
    }
  }
}

void RunKeyScores(const KeyScoreRun& run) {
  const FloatTag d;
  const int32_t padded = run.padded_head_dim;
  std::fill(run.scores, run.scores + kPageUnits, kMinusInf);
  for (int32_t first = 0; first < run.tokens; first += kLanes) {
    const uint16_t* words = run.keys + KeyIndex(first, 0, padded);
    for (int32_t g = 0; g < run.group; ++g) {
      const float* q = run.queries + g * padded;
      FloatVec low = hn::Zero(d);
      FloatVec high = hn::Zero(d);
      for (int32_t dim = 0; dim < padded; dim += 2) {
        const WordVec pairs = LoadPairs(words + int64_t{dim} * kUnitTokens);
        low = hn::MulAdd(First(pairs), hn::Set(d, q[dim]), low);
        high = hn::MulAdd(Second(pairs), hn::Set(d, q[dim + 1]), high);
      }
      // Tokens that are not there yet lose.
      const auto there = hn::FirstN(d, static_cast<size_t>(run.tokens - first));
      const FloatVec sum = hn::IfThenElse(there, hn::Add(low, high), hn::Set(d, kMinusInf));
      const FloatVec best = Better(sum, hn::Set(d, kMinusInf));
      float& score = run.scores[first / kUnitTokens];
      score = std::max(score, hn::GetLane(hn::MaxOfLanes(d, best)) * run.scale);
    }
  }
}

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(RunMinMaxScores);
HWY_EXPORT(RunSketchScores);
HWY_EXPORT(RunKeyScores);

void MinMax(const PageScoreRun& run) { HWY_DYNAMIC_DISPATCH(RunMinMaxScores)(run); }
void Sketch(const PageScoreRun& run) { HWY_DYNAMIC_DISPATCH(RunSketchScores)(run); }
bool Always() { return true; }

}  // namespace

void ScoreOpenKeys(const KeyScoreRun& run) { HWY_DYNAMIC_DISPATCH(RunKeyScores)(run); }

SelectVariant HighwaySelectVariant() { return {"highway", Always, MinMax, Sketch}; }

}  // namespace lserve::cpu
#endif  // HWY_ONCE
