// Prefill attention in float32 on any CPU: 4 rows x 2 vectors of keys or of dims in registers. bf16
// pairs of the cache are widened by a shift and a mask.

// The targets worth compiling for: the baseline, AVX2 and AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_prefill_highway.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <bit>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attend_prefill_kernel.h"
#include "kernels/cpu/attention_highway-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {

// tile.q widened to tile.staging.
void WidenQueries(const PrefillTile& tile) {
  const int32_t count = kRowTile * tile.padded_head_dim;
  for (int32_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(tile.q[i]) << 16;
    __builtin_memcpy(tile.staging + i, &bits, sizeof(bits));
  }
}

// Scores of 4 rows and 2 vectors of tokens whose keys start at k0 and k1.
HWY_INLINE void ScoreVectors(const float* HWY_RESTRICT q, int32_t dims,
                             const uint16_t* HWY_RESTRICT k0, const uint16_t* HWY_RESTRICT k1,
                             float* HWY_RESTRICT scores0, float* HWY_RESTRICT scores1) {
  const FloatTag d;
  FloatVec a0 = hn::Zero(d), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, e0 = a0, e1 = a0;
  for (int32_t i = 0; i < dims; i += 2, k0 += 32, k1 += 32) {
    const WordVec pairs0 = LoadPairs(k0);
    const WordVec pairs1 = LoadPairs(k1);
    for (int32_t half = 0; half < 2; ++half) {
      const FloatVec x0 = half == 0 ? First(pairs0) : Second(pairs0);
      const FloatVec x1 = half == 0 ? First(pairs1) : Second(pairs1);
      const float* column = q + i + half;
      const FloatVec q0 = hn::Set(d, column[0]);
      const FloatVec q1 = hn::Set(d, column[dims]);
      const FloatVec q2 = hn::Set(d, column[2 * dims]);
      const FloatVec q3 = hn::Set(d, column[3 * dims]);
      a0 = hn::MulAdd(q0, x0, a0);
      a1 = hn::MulAdd(q0, x1, a1);
      b0 = hn::MulAdd(q1, x0, b0);
      b1 = hn::MulAdd(q1, x1, b1);
      c0 = hn::MulAdd(q2, x0, c0);
      c1 = hn::MulAdd(q2, x1, c1);
      e0 = hn::MulAdd(q3, x0, e0);
      e1 = hn::MulAdd(q3, x1, e1);
    }
  }
  hn::StoreU(a0, d, scores0);
  hn::StoreU(a1, d, scores1);
  hn::StoreU(b0, d, scores0 + kScoreStride);
  hn::StoreU(b1, d, scores1 + kScoreStride);
  hn::StoreU(c0, d, scores0 + 2 * kScoreStride);
  hn::StoreU(c1, d, scores1 + 2 * kScoreStride);
  hn::StoreU(e0, d, scores0 + 3 * kScoreStride);
  hn::StoreU(e1, d, scores1 + 3 * kScoreStride);
}

void Scores(const PrefillTile& tile) {
  const int32_t dims = tile.padded_head_dim;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(FloatTag()));
  for (int32_t b = 0; b < tile.block_count; ++b) {
    const uint16_t* keys = tile.blocks[b].keys;
    for (int32_t t = 0; t < 64; t += 2 * lanes) {
      const int32_t u = t + lanes;
      const uint16_t* k0 = keys + int64_t{t / 16} * 16 * dims + t % 16 * 2;
      const uint16_t* k1 = keys + int64_t{u / 16} * 16 * dims + u % 16 * 2;
      for (int32_t row = 0; row < kRowTile; row += 4) {
        float* scores = tile.scores + row * kScoreStride + b * 64;
        ScoreVectors(tile.staging + int64_t{row} * dims, dims, k0, k1, scores + t, scores + u);
      }
    }
  }
}

// -inf where rows do not see a key, the blocks that rows weigh under their thresholds, and the
// running maxima.
StepScores LookAtScores(const PrefillTile& tile) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  const FloatTag d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  StepScores step;
  for (int32_t row = 0; row < kRowTile; ++row) {
    float maxima[kStepBlocks];
    step.row_max[row] = tile.row_max[row];
    for (int32_t b = 0; b < tile.block_count; ++b) {
      float* scores = tile.scores + row * kScoreStride + b * 64;
      const PrefillBlock& block = tile.blocks[b];
      for (int32_t t = 0; block.edge && t < 64; ++t) {
        if (!SeesKey(tile.positions[row], block.first_position + t, tile.sink_tokens,
                     tile.local_tokens)) {
          scores[t] = kMinusInf;
        }
      }
      FloatVec largest = hn::LoadU(d, scores);
      for (int32_t t = lanes; t < 64; t += lanes) {
        largest = hn::Max(largest, hn::LoadU(d, scores + t));
      }
      maxima[b] = hn::GetLane(hn::MaxOfLanes(d, largest));
      step.row_max[row] = maxima[b] > step.row_max[row] ? maxima[b] : step.row_max[row];
    }
    for (int32_t b = 0; b < tile.block_count; ++b) {
      // Not a number, and left out, where the row has seen nothing yet.
      const float weight = (maxima[b] - step.row_max[row]) * tile.scale;
      if (tile.thresholds == nullptr || weight >= tile.thresholds[row]) {
        step.rows[b] |= 1u << row;
        step.weighed |= 1u << b;
      }
    }
  }
  return step;
}

// tile.scores of the blocks that some row weighs become probabilities, rounded to bf16 but kept as
// floats.
void Softmax(const PrefillTile& tile, const StepScores& step) {
  const FloatTag d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  for (int32_t row = 0; row < kRowTile; ++row) {
    const float old_max = tile.row_max[row];
    const float new_max = step.row_max[row];
    const bool sees = new_max > -std::numeric_limits<float>::infinity();
    float sum = tile.row_sum[row];
    if (new_max > old_max) {
      const float shrink = Exp2Scalar((old_max - new_max) * tile.scale);
      sum *= shrink;
      tile.row_max[row] = new_max;
      float* output = tile.output + int64_t{row} * tile.padded_head_dim;
      for (int32_t i = 0; i < tile.padded_head_dim; i += lanes) {
        hn::StoreU(hn::Mul(hn::LoadU(d, output + i), hn::Set(d, shrink)), d, output + i);
      }
    }
    const FloatVec scale = hn::Set(d, tile.scale);
    const FloatVec base = hn::Set(d, new_max * tile.scale);
    FloatVec added = hn::Zero(d);
    for (int32_t b = 0; b < tile.block_count; ++b) {
      float* scores = tile.scores + row * kScoreStride + b * 64;
      const bool weighs = sees && step.Weighs(row, b);
      for (int32_t t = 0; t < 64; t += lanes) {
        const FloatVec p =
            weighs ? Exp2(hn::MulSub(hn::LoadU(d, scores + t), scale, base)) : hn::Zero(d);
        added = hn::Add(added, p);
        hn::StoreU(RoundPositiveToBf16(p), d, scores + t);
      }
    }
    tile.row_sum[row] = sum + hn::GetLane(hn::SumOfLanes(d, added));
  }
}

// 4 rows and 2 vectors of dims of output += P V.
HWY_INLINE void AddVectors(const PrefillTile& tile, uint32_t weighed, int32_t row, int32_t dim,
                           int32_t lanes) {
  const FloatTag d;
  const int32_t dims = tile.padded_head_dim;
  float* output = tile.output + int64_t{row} * dims + dim;
  FloatVec a0 = hn::LoadU(d, output), a1 = hn::LoadU(d, output + lanes);
  FloatVec b0 = hn::LoadU(d, output + dims), b1 = hn::LoadU(d, output + dims + lanes);
  FloatVec c0 = hn::LoadU(d, output + 2 * dims), c1 = hn::LoadU(d, output + 2 * dims + lanes);
  FloatVec e0 = hn::LoadU(d, output + 3 * dims), e1 = hn::LoadU(d, output + 3 * dims + lanes);
  for (int32_t b = 0; b < tile.block_count; ++b) {
    if ((weighed >> b & 1) == 0) {
      continue;
    }
    const uint16_t* values = tile.blocks[b].values + dim * 2;
    const float* p = tile.scores + row * kScoreStride + b * 64;
    for (int32_t t = 0; t < 64; t += 2, values += 2 * dims) {
      const WordVec pairs0 = LoadPairs(values);
      const WordVec pairs1 = LoadPairs(values + 2 * lanes);
      for (int32_t half = 0; half < 2; ++half) {
        const FloatVec v0 = half == 0 ? First(pairs0) : Second(pairs0);
        const FloatVec v1 = half == 0 ? First(pairs1) : Second(pairs1);
        const float* column = p + t + half;
        const FloatVec p0 = hn::Set(d, column[0]);
        const FloatVec p1 = hn::Set(d, column[kScoreStride]);
        const FloatVec p2 = hn::Set(d, column[2 * kScoreStride]);
        const FloatVec p3 = hn::Set(d, column[3 * kScoreStride]);
        a0 = hn::MulAdd(p0, v0, a0);
        a1 = hn::MulAdd(p0, v1, a1);
        b0 = hn::MulAdd(p1, v0, b0);
        b1 = hn::MulAdd(p1, v1, b1);
        c0 = hn::MulAdd(p2, v0, c0);
        c1 = hn::MulAdd(p2, v1, c1);
        e0 = hn::MulAdd(p3, v0, e0);
        e1 = hn::MulAdd(p3, v1, e1);
      }
    }
  }
  hn::StoreU(a0, d, output);
  hn::StoreU(a1, d, output + lanes);
  hn::StoreU(b0, d, output + dims);
  hn::StoreU(b1, d, output + dims + lanes);
  hn::StoreU(c0, d, output + 2 * dims);
  hn::StoreU(c1, d, output + 2 * dims + lanes);
  hn::StoreU(e0, d, output + 3 * dims);
  hn::StoreU(e1, d, output + 3 * dims + lanes);
}

int32_t RunPrefillTile(const PrefillTile& tile) {
  WidenQueries(tile);
  Scores(tile);
  const StepScores step = LookAtScores(tile);
  if (step.weighed == 0) {
    return 0;
  }
  Softmax(tile, step);
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(FloatTag()));
  for (int32_t dim = 0; dim < tile.padded_head_dim; dim += 2 * lanes) {
    for (int32_t row = 0; row < kRowTile; row += 4) {
      AddVectors(tile, step.weighed, row, dim, lanes);
    }
  }
  return std::popcount(step.weighed);
}

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(RunPrefillTile);

int32_t Run(const PrefillTile& tile) { return HWY_DYNAMIC_DISPATCH(RunPrefillTile)(tile); }
bool Always() { return true; }
void Nothing() {}

}  // namespace

PrefillVariant HighwayPrefillVariant() { return {"highway", Always, Nothing, Run, Nothing}; }

}  // namespace lserve::cpu
#endif  // HWY_ONCE
