// bfloat16 in float32 vectors. Included once a Highway target; functions of lserve::cpu's target
// namespace.

// NOLINTNEXTLINE(llvm-header-guard): toggles, so that every target's pass sees the content once.
#if defined(LSERVE_KERNELS_CPU_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LSERVE_KERNELS_CPU_BF16_INL_H_
#undef LSERVE_KERNELS_CPU_BF16_INL_H_
#else
#define LSERVE_KERNELS_CPU_BF16_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Lanes(df) values at p, widened.
template <class DF>
HWY_INLINE hn::Vec<DF> LoadBF16(DF df, const BFloat16* p) {
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<uint32_t, DF> du32;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
}

// The bits of v rounded to nearest even bfloat16 in the upper half of each lane; the lower half is
// not cleared. Finite values and infinities; a NaN other than the default one may not stay one.
template <class DF>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, DF>> RoundUpperHalf(DF df, hn::Vec<DF> v) {
  const hn::Rebind<uint32_t, DF> du32;
  (void)df;
  const auto bits = hn::BitCast(du32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du32, 1u));
  return hn::Add(bits, hn::Add(odd, hn::Set(du32, 0x7FFFu)));
}

// v as it reads back after being stored in bfloat16.
template <class DF>
HWY_INLINE hn::Vec<DF> RoundBF16(DF df, hn::Vec<DF> v) {
  const hn::Rebind<uint32_t, DF> du32;
  return hn::BitCast(df, hn::And(RoundUpperHalf(df, v), hn::Set(du32, 0xFFFF0000u)));
}

// Rounds and stores Lanes(df) values.
template <class DF>
HWY_INLINE void StoreBF16(DF df, hn::Vec<DF> v, BFloat16* p) {
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<int32_t, DF> di32;
  const auto bits = hn::ShiftRight<16>(RoundUpperHalf(df, v));
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, bits)), du16, reinterpret_cast<uint16_t*>(p));
}

}  // namespace HWY_NAMESPACE
}  // namespace lserve::cpu
HWY_AFTER_NAMESPACE();

#endif  // LSERVE_KERNELS_CPU_BF16_INL_H_
