// When a query has moved too far for the selection that an earlier one made. Sums in float32, in
// index order. Free function; usable in device code.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace lserve {

// Whether |q - from| > distance |q| for one of the `group` queries of [head_dim] elements of T.
template <typename T>
bool QueryMoved(const T* q, const T* from, int32_t group, int32_t head_dim, float distance) {
  for (int32_t g = 0; g < group; ++g) {
    float moved = 0.0f;
    float length = 0.0f;
    for (int32_t d = 0; d < head_dim; ++d) {
      const float now = ToFloat(q[g * head_dim + d]);
      const float step = now - ToFloat(from[g * head_dim + d]);
      moved += step * step;
      length += now * now;
    }
    if (!(moved <= distance * distance * length)) {  // true for a NaN
      return true;
    }
  }
  return false;
}

}  // namespace lserve
