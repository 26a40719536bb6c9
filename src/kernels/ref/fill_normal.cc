#include "kernels/normal_numbers.h"
#include "kernels/ref/operations.h"
#include "kernels/ref/scalar.h"

namespace lserve::ref {

void RunFillNormal(const FillNormalParams& params) {
  const float unit = NormalUnit(params.deviation);
  WithActivations(params.dtype, [&]<typename T>() {
    for (int64_t i = 0; i < params.count; ++i) {
      const uint64_t number = params.first + static_cast<uint64_t>(i);
      const int32_t sum = NormalPair(params.seed, number / 2)[number % 2];
      static_cast<T*>(params.data)[i] = FromFloat<T>(static_cast<float>(sum) * unit);
    }
  });
}

}  // namespace lserve::ref
