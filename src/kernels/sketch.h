// The key sketch of a closed page, by element: its box (each channel's range over the page's keys,
// in float16) and a 2-bit code of every key's place in the box. All backends compute these in
// float32, in this order, so that they store the same bits. Free functions; usable in device code.
#pragma once

#include <bit>
#include <cstdint>

#include "tensor/dtype.h"

namespace lserve {

inline constexpr int32_t kSketchLevels = 4;

// Width of a cell of the box [lo, hi].
constexpr float SketchStep(float lo, float hi) { return (hi - lo) / float{kSketchLevels}; }

// clamp(floor((key - lo) / step), 0, 3); 0 where that is NaN (a key at a box without width).
constexpr int32_t SketchCode(float key, float lo, float step) {
  const float place = (key - lo) / step;
  return (place >= 1.0f ? 1 : 0) + (place >= 2.0f ? 1 : 0) + (place >= 3.0f ? 1 : 0);
}

// What a code reads back as: the middle of its cell.
constexpr float SketchValue(int32_t code, float lo, float step) {
  return lo + (static_cast<float>(code) + 0.5f) * step;
}

namespace sketch_internal {

// Rounds |x| towards zero; sets `inexact` if something was cut off.
constexpr uint16_t TruncateMagnitude(float magnitude, bool* inexact) {
  constexpr uint16_t kLargest = 0x7BFF;
  const auto bits = std::bit_cast<uint32_t>(magnitude);
  if (bits >= 0x477FE000u) {  // 65504 and above, infinity, NaN
    *inexact = false;
    return kLargest;
  }
  if (bits < 0x38800000u) {  // below 2^-14: subnormal in float16, in steps of 2^-24
    const float steps = magnitude * 16777216.0f;
    const auto whole = static_cast<uint16_t>(steps);
    *inexact = static_cast<float>(whole) != steps;
    return whole;
  }
  *inexact = (bits & 0x1FFFu) != 0;
  return static_cast<uint16_t>((bits - 0x38000000u) >> 13);
}

constexpr Float16 RoundToFloat16(float x, bool down) {
  const bool negative = std::bit_cast<uint32_t>(x) >> 31 != 0;
  bool inexact = false;
  auto bits = TruncateMagnitude(negative ? -x : x, &inexact);
  if (inexact && negative == down) {
    ++bits;  // the largest value is never inexact, so this stays finite
  }
  return Float16{static_cast<uint16_t>(negative && bits != 0 ? bits | 0x8000u : bits)};
}

}  // namespace sketch_internal

// The largest float16 that is not above x; the finite range ends at 65504 on either side. A zero is
// positive, so that the order in which zeros were compared does not show.
constexpr Float16 RoundDownToFloat16(float x) { return sketch_internal::RoundToFloat16(x, true); }
// The smallest float16 that is not below x.
constexpr Float16 RoundUpToFloat16(float x) { return sketch_internal::RoundToFloat16(x, false); }

}  // namespace lserve
