// Pieces that the portable attention kernels share, compiled once for each Highway target.
// Included by the files that hold such kernels, inside their own per-target compilation.

#if defined(LSERVE_ATTENTION_HIGHWAY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LSERVE_ATTENTION_HIGHWAY_INL_H_
#undef LSERVE_ATTENTION_HIGHWAY_INL_H_
#else
#define LSERVE_ATTENTION_HIGHWAY_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Float vectors of at most 16 lanes: a unit of tokens is a whole number of them.
using FloatTag = hn::CappedTag<float, 16>;
using WordTag = hn::CappedTag<uint32_t, 16>;
using FloatVec = hn::Vec<FloatTag>;
using WordVec = hn::Vec<WordTag>;

// N pairs of bf16 as one vector of dwords.
HWY_INLINE WordVec LoadPairs(const uint16_t* from) {
  return hn::LoadU(WordTag(), reinterpret_cast<const uint32_t*>(from));
}
// The first and the second of each pair, widened.
HWY_INLINE FloatVec First(WordVec pairs) {
  return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(pairs));
}
HWY_INLINE FloatVec Second(WordVec pairs) {
  return hn::BitCast(FloatTag(), hn::And(pairs, hn::Set(WordTag(), 0xFFFF0000u)));
}

// x >= 0 rounded to bf16, to nearest, ties to even; stays in float lanes.
HWY_INLINE FloatVec RoundPositiveToBf16(FloatVec x) {
  const WordTag du;
  const WordVec bits = hn::BitCast(du, x);
  const WordVec tie = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const WordVec rounded = hn::Add(bits, hn::Add(tie, hn::Set(du, 0x7FFFu)));
  return hn::BitCast(FloatTag(), hn::And(rounded, hn::Set(du, 0xFFFF0000u)));
}

// 2^x for x <= 0, relative error below 3e-6; exactly 1 at 0 and 0 below -126. The polynomial is
// minimax on [0, 1), fixed to 1 at 0.
HWY_INLINE FloatVec Exp2(FloatVec x) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const FloatVec lowest = hn::Set(d, -126.0f);
  const FloatVec clamped = hn::Max(x, lowest);
  const FloatVec whole = hn::Floor(clamped);
  const FloatVec f = hn::Sub(clamped, whole);
  FloatVec p = hn::Set(d, 0.0134266838f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.0522424728f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.241280198f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693044841f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127)));
  const FloatVec power = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenElseZero(hn::Ge(x, lowest), power);
}

HWY_INLINE float Exp2Scalar(float x) { return hn::GetLane(Exp2(hn::Set(FloatTag(), x))); }

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LSERVE_ATTENTION_HIGHWAY_INL_H_
