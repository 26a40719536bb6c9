// Decode attention in float32 on any CPU. bf16 pairs of the cache are widened by a shift and a
// mask.

// The targets worth compiling for: the baseline, AVX2 and AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_decode_highway.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attend_decode_kernel.h"
#include "kernels/cpu/attend_prefill_kernel.h"
#include "kernels/cpu/attention_highway-inl.h"
#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {

// Scores of one unit for kHeads query heads from `head` on.
template <int kHeads>
void ScoreUnit(const DecodeSegment& segment, int32_t head, int32_t unit) {
  const FloatTag d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  const int32_t dims = segment.padded_head_dim;
  const uint16_t* q = segment.q + int64_t{head} * dims;
  for (int32_t t = 0; t < 16; t += lanes) {
    const uint16_t* keys = segment.units[unit].keys + t * 2;
    FloatVec even[kHeads];
    FloatVec odd[kHeads];
    for (int32_t h = 0; h < kHeads; ++h) {
      even[h] = odd[h] = hn::Zero(d);
    }
    for (int32_t i = 0; i < dims; i += 2, keys += 32) {
      const WordVec pairs = LoadPairs(keys);
      const FloatVec first = First(pairs);
      const FloatVec second = Second(pairs);
      for (int32_t h = 0; h < kHeads; ++h) {
        const uint16_t* pair = q + h * dims + i;
        even[h] = hn::MulAdd(hn::Set(d, ToFloat(BFloat16{pair[0]})), first, even[h]);
        odd[h] = hn::MulAdd(hn::Set(d, ToFloat(BFloat16{pair[1]})), second, odd[h]);
      }
    }
    for (int32_t h = 0; h < kHeads; ++h) {
      hn::StoreU(hn::Add(even[h], odd[h]), d,
                 segment.scores + (int64_t{head + h} * segment.unit_count + unit) * 16 + t);
    }
  }
}

// Scores to probabilities, rounded to bf16 but kept as floats; the record's maximum and sum.
void Softmax(const DecodeSegment& segment, int32_t head) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  const FloatTag d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  const int32_t tokens = segment.unit_count * 16;
  float* scores = segment.scores + int64_t{head} * tokens;
  float* record = segment.records + head * segment.record_stride;
  for (int32_t i = 0; i < segment.unit_count; ++i) {
    const DecodeUnit& unit = segment.units[i];
    for (int32_t t = 0; unit.edge && t < 16; ++t) {
      if (!SeesKey(segment.position, unit.first_position + t, segment.sink_tokens,
                   segment.local_tokens)) {
        scores[i * 16 + t] = kMinusInf;
      }
    }
  }
  FloatVec largest = hn::Set(d, kMinusInf);
  for (int32_t t = 0; t < tokens; t += lanes) {
    largest = hn::Max(largest, hn::LoadU(d, scores + t));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  const FloatVec scale = hn::Set(d, segment.scale);
  // A segment of which nothing is seen has probabilities of zero and takes no part.
  const FloatVec base = hn::Set(d, max == kMinusInf ? 0.0f : max * segment.scale);
  FloatVec sum = hn::Zero(d);
  for (int32_t t = 0; t < tokens; t += lanes) {
    const FloatVec p = Exp2(hn::MulSub(hn::LoadU(d, scores + t), scale, base));
    sum = hn::Add(sum, p);
    hn::StoreU(RoundPositiveToBf16(p), d, scores + t);
  }
  record[0] = max;
  record[1] = hn::GetLane(hn::SumOfLanes(d, sum));
}

// Output of kHeads query heads.
template <int kHeads>
void AddValues(const DecodeSegment& segment, int32_t head) {
  const FloatTag d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  const int32_t dims = segment.padded_head_dim;
  const int64_t tokens = int64_t{segment.unit_count} * 16;
  for (int32_t dim = 0; dim < dims; dim += lanes) {
    FloatVec even[kHeads];
    FloatVec odd[kHeads];
    for (int32_t h = 0; h < kHeads; ++h) {
      even[h] = odd[h] = hn::Zero(d);
    }
    const float* p = segment.scores + head * tokens;
    for (int32_t i = 0; i < segment.unit_count; ++i) {
      const uint16_t* values = segment.units[i].values + dim * 2;
      for (int32_t t = 0; t < 16; t += 2, values += 2 * dims, p += 2) {
        const WordVec pairs = LoadPairs(values);
        const FloatVec first = First(pairs);
        const FloatVec second = Second(pairs);
        for (int32_t h = 0; h < kHeads; ++h) {
          even[h] = hn::MulAdd(hn::Set(d, p[h * tokens]), first, even[h]);
          odd[h] = hn::MulAdd(hn::Set(d, p[h * tokens + 1]), second, odd[h]);
        }
      }
    }
    for (int32_t h = 0; h < kHeads; ++h) {
      hn::StoreU(hn::Add(even[h], odd[h]), d,
                 segment.records + (head + h) * segment.record_stride + kRecordOutput + dim);
    }
  }
}

void RunDecodeSegment(const DecodeSegment& segment) {
  for (int32_t unit = 0; unit < segment.unit_count; ++unit) {
    int32_t head = 0;
    for (; head + 4 <= segment.group; head += 4) {
      ScoreUnit<4>(segment, head, unit);
    }
    for (; head + 2 <= segment.group; head += 2) {
      ScoreUnit<2>(segment, head, unit);
    }
    for (; head < segment.group; ++head) {
      ScoreUnit<1>(segment, head, unit);
    }
  }
  for (int32_t head = 0; head < segment.group; ++head) {
    Softmax(segment, head);
  }
  int32_t head = 0;
  for (; head + 4 <= segment.group; head += 4) {
    AddValues<4>(segment, head);
  }
  for (; head + 2 <= segment.group; head += 2) {
    AddValues<2>(segment, head);
  }
  for (; head < segment.group; ++head) {
    AddValues<1>(segment, head);
  }
}

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(RunDecodeSegment);

void Run(const DecodeSegment& segment) { HWY_DYNAMIC_DISPATCH(RunDecodeSegment)(segment); }
bool Always() { return true; }

}  // namespace

DecodeVariant HighwayDecodeVariant() { return {"highway", Always, Run, false}; }

}  // namespace lserve::cpu
#endif  // HWY_ONCE
