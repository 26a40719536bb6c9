#include "base/check.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/normal_numbers.h"

namespace lserve::cpu {

void RunFillNormal(const FillNormalParams& params, Team& team) {
  CHECK(params.dtype == DType::kBFloat16);
  const float unit = NormalUnit(params.deviation);
  const ThreadRange range(team, params.count);
  auto* data = static_cast<BFloat16*>(params.data);
  std::array<int32_t, 2> pair{};
  for (int64_t i = range.begin; i < range.end; ++i) {
    const uint64_t number = params.first + static_cast<uint64_t>(i);
    if (number % 2 == 0 || i == range.begin) {
      pair = NormalPair(params.seed, number / 2);
    }
    data[i] = ToBFloat16(static_cast<float>(pair[number % 2]) * unit);
  }
}

}  // namespace lserve::cpu
