// RopeAngles: once a step, so plain library functions.
#include <cmath>

#include "kernels/cpu/row_ops.h"

namespace lserve::cpu {

void RunRopeAngles(const RopeAnglesParams& params, Team& team) {
  const ThreadRange range(team, BatchRows(params.batch));
  const int32_t half = params.head_dim / 2;
  for (int64_t row = range.begin; row < range.end; ++row) {
    const auto position = static_cast<float>(params.batch.row_position[row]);
    float* angles = params.angles + row * params.head_dim;
    for (int32_t d = 0; d < half; ++d) {
      const float angle = position * params.inverse_frequencies[d];
      angles[2 * d] = std::cos(angle) * params.scale;
      angles[2 * d + 1] = std::sin(angle) * params.scale;
    }
  }
}

}  // namespace lserve::cpu
