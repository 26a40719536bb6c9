// Prefill attention for a padded head size of 64.
#include "kernels/cuda/attend_prefill.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_PREFILL(64)
}  // namespace lserve::cuda
