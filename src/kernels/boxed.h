// The boxed page formats int8 and int4, by element: a key is a code of b bits in its channel's box
// (sketch.h), a value a code of b bits on a grid of its token and KV head. All backends compute
// codes in float32, in this order, so that they store the same bits; what is read back may be
// rounded to the activations' type before it is multiplied. Free functions and values; usable in
// device code.
#pragma once

#include <cstdint>

#include "kernels/sketch.h"
#include "tensor/dtype.h"

namespace lserve {

// Width of one of the 2^bits cells of the box [lo, hi].
constexpr float KeyStep(float lo, float hi, int32_t bits) {
  return (hi - lo) / static_cast<float>(1 << bits);
}

// clamp(floor((key - lo) / step), 0, 2^bits - 1); 0 where that is NaN (a key at a box without
// width). Widths differ by powers of two, so the upper bits are the code of a coarser box: the
// upper 2 are the sketch's.
constexpr int32_t KeyCode(float key, float lo, float step, int32_t bits) {
  const float place = (key - lo) / step;
  const int32_t top = (1 << bits) - 1;
  return place >= static_cast<float>(top) ? top : place >= 1.0f ? static_cast<int32_t>(place) : 0;
}

// What a code reads back as: the middle of its cell. Of a box without width its only key.
constexpr float KeyOfCode(int32_t code, float lo, float step) {
  return lo + (static_cast<float>(code) + 0.5f) * step;
}

// The values of one token and KV head: zero + code * scale.
struct ValueGrid {
  Float16 zero;
  Float16 scale;
};
static_assert(sizeof(ValueGrid) == 4);

// The grid of values in [minimum, maximum]: code 0 is not above the minimum, the highest code not
// below the maximum (beyond float16's range: as near as it comes).
constexpr ValueGrid GridOf(float minimum, float maximum, int32_t bits) {
  const Float16 zero = RoundDownToFloat16(minimum);
  const float top = static_cast<float>((1 << bits) - 1);
  return {zero, RoundUpToFloat16((maximum - ToFloat(zero)) / top)};
}

// The nearest code; 0 on a grid without width.
constexpr int32_t ValueCode(float value, ValueGrid grid, int32_t bits) {
  const float place = (value - ToFloat(grid.zero)) / ToFloat(grid.scale) + 0.5f;
  const int32_t top = (1 << bits) - 1;
  return place >= static_cast<float>(top) ? top : place >= 1.0f ? static_cast<int32_t>(place) : 0;
}

constexpr float ValueOfCode(int32_t code, ValueGrid grid) {
  return ToFloat(grid.zero) + static_cast<float>(code) * ToFloat(grid.scale);
}

}  // namespace lserve
