// Box and codes of a page, two dimensions at a time; tokens lie in the lanes.
#include "kernels/cpu/sketch_page.h"

#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/simd.h"
#include "kernels/sketch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sketch_page.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_highway-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {

// Element of one of the two dimensions that lie paired in the dwords.
template <bool kOdd>
FloatVec Element(WordVec pairs) {
  return kOdd ? Second(pairs) : First(pairs);
}

// Box and codes of one dimension. words: the dwords of 16 tokens of the dimensions' pair in unit 0,
// `stride` dwords a unit; codes: the dimension's dwords in unit 0, `padded` apart.
template <bool kOdd>
void WriteDimension(const uint32_t* words, int64_t stride, Float16* lo, Float16* hi, int32_t dim,
                    uint32_t* codes, int32_t padded) {
  const FloatTag d;
  const WordTag du;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  FloatVec lowest = Element<kOdd>(hn::LoadU(du, words));
  FloatVec highest = lowest;
  for (int32_t unit = 0; unit < kPageTokens / kUnitTokens; ++unit) {
    for (int32_t t = 0; t < kUnitTokens; t += lanes) {
      const FloatVec key = Element<kOdd>(hn::LoadU(du, words + unit * stride + t));
      lowest = hn::Min(lowest, key);
      highest = hn::Max(highest, key);
    }
  }
  *lo = RoundDownToFloat16(hn::GetLane(hn::MinOfLanes(d, lowest)));
  *hi = RoundUpToFloat16(hn::GetLane(hn::MaxOfLanes(d, highest)));

  const FloatVec from = hn::Set(d, ToFloat(*lo));
  const FloatVec step = hn::Set(d, SketchStep(ToFloat(*lo), ToFloat(*hi)));
  const WordVec one = hn::Set(du, 1u);
  const bool first = dim % kSketchWordDims == 0;  // of its dword, whose bits are a recycled page's
  for (int32_t unit = 0; unit < kPageTokens / kUnitTokens; ++unit) {
    for (int32_t t = 0; t < kUnitTokens; t += lanes) {
      const FloatVec key = Element<kOdd>(hn::LoadU(du, words + unit * stride + t));
      const FloatVec place = hn::Div(hn::Sub(key, from), step);
      const auto at_least = [&](float level) {
        return hn::IfThenElseZero(hn::RebindMask(du, hn::Ge(place, hn::Set(d, level))), one);
      };
      const WordVec code = hn::Add(hn::Add(at_least(1.0f), at_least(2.0f)), at_least(3.0f));
      const WordVec bits = hn::ShiftLeftSame(code, SketchShift(dim));
      uint32_t* to = codes + int64_t{unit} * padded + t;
      hn::StoreU(first ? bits : hn::Or(hn::LoadU(du, to), bits), du, to);
    }
  }
}

void WriteHead(const uint16_t* keys, int32_t padded, Float16* box, uint32_t* codes) {
  const int64_t stride = int64_t{kUnitTokens} * padded / 2;  // dwords of a unit
  for (int32_t dim = 0; dim < padded; dim += 2) {
    const auto* words = reinterpret_cast<const uint32_t*>(keys) + int64_t{dim} / 2 * kUnitTokens;
    uint32_t* to = codes + SketchIndex(0, dim, padded);
    WriteDimension<false>(words, stride, box + dim, box + padded + dim, dim, to, padded);
    WriteDimension<true>(words, stride, box + dim + 1, box + padded + dim + 1, dim + 1, to, padded);
  }
}

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {
HWY_EXPORT(WriteHead);
}  // namespace

void WriteSketch(const KvPageLayout& layout, int32_t head, std::byte* page) {
  HWY_DYNAMIC_DISPATCH(WriteHead)
  (reinterpret_cast<const uint16_t*>(page + layout.key_offset(head)), layout.padded_head_dim,
   reinterpret_cast<Float16*>(page + layout.stats_offset(head)),
   reinterpret_cast<uint32_t*>(page + layout.codes_offset(head)));
}

}  // namespace lserve::cpu
#endif  // HWY_ONCE
