// Codes of keys, two dimensions at a time with tokens in the lanes, and of values, two tokens at a
// time with dimensions in the lanes, as the pairs of a page in full lie.
#include "kernels/cpu/page_codes.h"

#include <type_traits>

#include "kernels/boxed.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/page_codes.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_highway-inl.h"
#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {

using HalfTag = hn::Rebind<hwy::float16_t, FloatTag>;

// clamp(floor(place), 0, top); 0 where place is NaN.
HWY_INLINE WordVec CodeOf(FloatVec place, FloatVec top) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const FloatVec cell = hn::IfThenElseZero(hn::Ge(place, hn::Set(d, 1.0f)), hn::Min(place, top));
  return hn::BitCast(WordTag(), hn::ConvertTo(di, cell));
}

// Two vectors of floats as vectors of bf16 pairs.
HWY_INLINE WordVec RoundPairs(FloatVec first, FloatVec second) {
  const FloatTag d;
  return hn::Or(hn::ShiftRight<16>(RoundUpperHalf(d, first)),
                hn::And(RoundUpperHalf(d, second), hn::Set(WordTag(), 0xFFFF0000u)));
}

// Element of one of the two dimensions that lie paired in the dwords.
template <bool kOdd>
HWY_INLINE FloatVec Element(WordVec pairs) {
  return kOdd ? Second(pairs) : First(pairs);
}

// Box and codes of dimension `dim`. words: the dwords of 16 tokens of the dimensions' pair in unit
// 0, `stride` dwords a unit.
template <bool kOdd>
void WriteDimension(const uint32_t* words, int64_t stride, int32_t dim, int32_t padded,
                    const HeadCodes& codes) {
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
  const Float16 lo = RoundDownToFloat16(hn::GetLane(hn::MinOfLanes(d, lowest)));
  const Float16 hi = RoundUpToFloat16(hn::GetLane(hn::MaxOfLanes(d, highest)));
  codes.box[dim] = lo;
  codes.box[padded + dim] = hi;

  const int32_t bits = 2 * codes.plane_count;
  const FloatVec from = hn::Set(d, ToFloat(lo));
  const FloatVec step = hn::Set(d, KeyStep(ToFloat(lo), ToFloat(hi), bits));
  const FloatVec top = hn::Set(d, static_cast<float>((1 << bits) - 1));
  const WordVec three = hn::Set(du, 3u);
  const bool first = dim % kSketchWordDims == 0;  // of its dword, whose bits are a recycled page's
  for (int32_t unit = 0; unit < kPageTokens / kUnitTokens; ++unit) {
    for (int32_t t = 0; t < kUnitTokens; t += lanes) {
      const FloatVec key = Element<kOdd>(hn::LoadU(du, words + unit * stride + t));
      const WordVec code = CodeOf(hn::Div(hn::Sub(key, from), step), top);
      const int64_t index = SketchIndex(unit * kUnitTokens + t, dim, padded);
      for (int32_t plane = 0; plane < codes.plane_count; ++plane) {
        const WordVec two = hn::And(hn::ShiftRightSame(code, bits - 2 * (plane + 1)), three);
        const WordVec placed = hn::ShiftLeftSame(two, SketchShift(dim));
        uint32_t* to = codes.planes[plane] + index;
        hn::StoreU(first ? placed : hn::Or(hn::LoadU(du, to), placed), du, to);
      }
    }
  }
}

void WriteKeys(const KvPageLayout& layout, const uint16_t* keys, const HeadCodes& codes) {
  const int32_t padded = layout.padded_head_dim;
  const int64_t stride = int64_t{kUnitTokens} * padded / 2;  // dwords of a unit
  for (int32_t dim = 0; dim < padded; dim += 2) {
    const auto* words = reinterpret_cast<const uint32_t*>(keys) + int64_t{dim} / 2 * kUnitTokens;
    WriteDimension<false>(words, stride, dim, padded, codes);
    WriteDimension<true>(words, stride, dim + 1, padded, codes);
  }
}

// The grid of one token of a pair of tokens; padding takes no part.
template <bool kOdd>
ValueGrid TokenGrid(const uint32_t* pairs, int32_t head_dim, int32_t bits) {
  const FloatTag d;
  const WordTag du;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  FloatVec lowest = hn::Set(d, hn::GetLane(Element<kOdd>(hn::LoadU(du, pairs))));
  FloatVec highest = lowest;
  for (int32_t dim = 0; dim < head_dim; dim += lanes) {
    const auto real = hn::FirstN(d, static_cast<size_t>(head_dim - dim));
    const FloatVec value = Element<kOdd>(hn::LoadU(du, pairs + dim));
    lowest = hn::IfThenElse(real, hn::Min(lowest, value), lowest);
    highest = hn::IfThenElse(real, hn::Max(highest, value), highest);
  }
  return GridOf(hn::GetLane(hn::MinOfLanes(d, lowest)), hn::GetLane(hn::MaxOfLanes(d, highest)),
                bits);
}

template <int32_t kBits>
void WriteValuesOf(const KvPageLayout& layout, const uint16_t* values, const HeadCodes& codes) {
  using Code = std::conditional_t<kBits == 4, uint8_t, uint16_t>;  // of two tokens
  const int32_t padded = layout.padded_head_dim;
  const FloatTag d;
  const WordTag du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<Code, FloatTag> dc;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  const FloatVec top = hn::Set(d, static_cast<float>((1 << kBits) - 1));
  const FloatVec half = hn::Set(d, 0.5f);
  for (int32_t token = 0; token < kPageTokens; token += 2) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(values + ValueIndex(token, 0, padded));
    const ValueGrid even = TokenGrid<false>(pairs, layout.head_dim, kBits);
    const ValueGrid odd = TokenGrid<true>(pairs, layout.head_dim, kBits);
    codes.grids[token] = even;
    codes.grids[token + 1] = odd;
    const auto code = [&](FloatVec value, const ValueGrid& grid) {
      const FloatVec offset = hn::Sub(value, hn::Set(d, ToFloat(grid.zero)));
      return CodeOf(hn::Add(hn::Div(offset, hn::Set(d, ToFloat(grid.scale))), half), top);
    };
    auto* to = reinterpret_cast<Code*>(codes.values) + ValueCodeIndex(token, 0, padded);
    for (int32_t dim = 0; dim < padded; dim += lanes) {
      const WordVec pair = hn::LoadU(du, pairs + dim);
      const WordVec both =
          hn::Or(code(First(pair), even), hn::ShiftLeft<kBits>(code(Second(pair), odd)));
      hn::StoreU(hn::DemoteTo(dc, hn::BitCast(di, both)), dc, to + dim);
    }
  }
}

void WriteValues(const KvPageLayout& layout, const uint16_t* values, const HeadCodes& codes) {
  if (layout.value_bits() == 8) {
    WriteValuesOf<8>(layout, values, codes);
  } else {
    WriteValuesOf<4>(layout, values, codes);
  }
}

// Lowest key and width of a cell, by dimension.
struct KeyBox {
  alignas(64) float lo[kMaxHeadDim];
  alignas(64) float step[kMaxHeadDim];
};

void WidenBox(const Float16* box, int32_t padded, int32_t bits, KeyBox& out) {
  const FloatTag d;
  const HalfTag d16;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(box);
  const FloatVec cells = hn::Set(d, KeyStep(0.0f, 1.0f, bits));
  for (int32_t dim = 0; dim < padded; dim += lanes) {
    const FloatVec lo = hn::PromoteTo(d, hn::LoadU(d16, halves + dim));
    const FloatVec hi = hn::PromoteTo(d, hn::LoadU(d16, halves + padded + dim));
    hn::Store(lo, d, out.lo + dim);
    hn::Store(hn::Mul(hn::Sub(hi, lo), cells), d, out.step + dim);
  }
}

// One unit's keys. Four neighbouring dimensions' codes are the bytes of a dword.
template <int32_t kPlanes>
void ReadKeyUnit(const HeadCodes& codes, const KeyBox& box, int32_t unit, int32_t padded,
                 uint32_t* keys) {
  const FloatTag d;
  const WordTag du;
  const hn::RebindToSigned<FloatTag> di;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  const WordVec pairs_of_bits = hn::Set(du, 0x03030303u);
  const WordVec byte = hn::Set(du, 0xFFu);
  const FloatVec half = hn::Set(d, 0.5f);
  for (int32_t t = 0; t < kUnitTokens; t += lanes) {
    for (int32_t word = 0; word < padded; word += kSketchWordDims) {
      const int64_t index = SketchIndex(unit * kUnitTokens + t, word, padded);
      WordVec planes[kPlanes];
      for (int32_t plane = 0; plane < kPlanes; ++plane) {
        planes[plane] = hn::LoadU(du, codes.planes[plane] + index);
      }
      for (int32_t four = word; four < word + kSketchWordDims; four += 4) {
        WordVec bytes = hn::Zero(du);
        for (int32_t plane = 0; plane < kPlanes; ++plane) {
          bytes = hn::Or(hn::ShiftLeft<2>(bytes), hn::And(planes[plane], pairs_of_bits));
          planes[plane] = hn::ShiftRight<2>(planes[plane]);
        }
        const auto read_back = [&](WordVec code, int32_t dim) {
          const FloatVec cell = hn::Add(hn::ConvertTo(d, hn::BitCast(di, code)), half);
          return hn::MulAdd(cell, hn::Set(d, box.step[dim]), hn::Set(d, box.lo[dim]));
        };
        uint32_t* to = keys + four / 2 * kUnitTokens + t;
        hn::StoreU(RoundPairs(read_back(hn::And(bytes, byte), four),
                              read_back(hn::And(hn::ShiftRight<8>(bytes), byte), four + 1)),
                   du, to);
        hn::StoreU(RoundPairs(read_back(hn::And(hn::ShiftRight<16>(bytes), byte), four + 2),
                              read_back(hn::ShiftRight<24>(bytes), four + 3)),
                   du, to + kUnitTokens);
      }
    }
  }
}

// One unit's values.
template <int32_t kBits>
void ReadValueUnit(const HeadCodes& codes, int32_t unit, int32_t padded, uint32_t* values) {
  using Code = std::conditional_t<kBits == 4, uint8_t, uint16_t>;
  const FloatTag d;
  const WordTag du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<Code, FloatTag> dc;
  const auto lanes = static_cast<int32_t>(hn::Lanes(d));
  const WordVec mask = hn::Set(du, (1u << kBits) - 1);
  for (int32_t pair = 0; pair < kUnitTokens / 2; ++pair, values += padded) {
    const int32_t token = unit * kUnitTokens + 2 * pair;
    const FloatVec zero0 = hn::Set(d, ToFloat(codes.grids[token].zero));
    const FloatVec scale0 = hn::Set(d, ToFloat(codes.grids[token].scale));
    const FloatVec zero1 = hn::Set(d, ToFloat(codes.grids[token + 1].zero));
    const FloatVec scale1 = hn::Set(d, ToFloat(codes.grids[token + 1].scale));
    const auto* from =
        reinterpret_cast<const Code*>(codes.values) + ValueCodeIndex(token, 0, padded);
    for (int32_t dim = 0; dim < padded; dim += lanes) {
      const WordVec both = hn::PromoteTo(du, hn::LoadU(dc, from + dim));
      const FloatVec first = hn::ConvertTo(d, hn::BitCast(di, hn::And(both, mask)));
      const FloatVec second = hn::ConvertTo(d, hn::BitCast(di, hn::ShiftRight<kBits>(both)));
      hn::StoreU(RoundPairs(hn::MulAdd(first, scale0, zero0), hn::MulAdd(second, scale1, zero1)),
                 du, values + dim);
    }
  }
}

template <int32_t kBits>
void ReadUnitsOf(const HeadCodes& codes, int32_t padded, int32_t first, int32_t units,
                 uint16_t* keys, uint16_t* values) {
  KeyBox box;
  WidenBox(codes.box, padded, kBits, box);
  const int64_t unit_words = int64_t{kUnitTokens} * padded / 2;
  for (int32_t i = 0; i < units; ++i) {
    ReadKeyUnit<kBits / 2>(codes, box, first + i, padded,
                           reinterpret_cast<uint32_t*>(keys) + i * unit_words);
    ReadValueUnit<kBits>(codes, first + i, padded,
                         reinterpret_cast<uint32_t*>(values) + i * unit_words);
  }
}

void ReadUnits(const KvPageLayout& layout, const HeadCodes& codes, int32_t first, int32_t units,
               uint16_t* keys, uint16_t* values) {
  const auto read = layout.value_bits() == 8 ? ReadUnitsOf<8> : ReadUnitsOf<4>;
  read(codes, layout.padded_head_dim, first, units, keys, values);
}

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {
HWY_EXPORT(WriteKeys);
HWY_EXPORT(WriteValues);
HWY_EXPORT(ReadUnits);
}  // namespace

void WriteKeyCodes(const KvPageLayout& layout, const uint16_t* keys, const HeadCodes& codes) {
  HWY_DYNAMIC_DISPATCH(WriteKeys)(layout, keys, codes);
}

void WriteValueCodes(const KvPageLayout& layout, const uint16_t* values, const HeadCodes& codes) {
  HWY_DYNAMIC_DISPATCH(WriteValues)(layout, values, codes);
}

void ReadBackUnits(const KvPageLayout& layout, const HeadCodes& codes, int32_t first, int32_t units,
                   uint16_t* keys, uint16_t* values) {
  HWY_DYNAMIC_DISPATCH(ReadUnits)(layout, codes, first, units, keys, values);
}

}  // namespace lserve::cpu
#endif  // HWY_ONCE
