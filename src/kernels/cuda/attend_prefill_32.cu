// Prefill attention for a padded head size of 32.
#include "kernels/cuda/attend_prefill.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_PREFILL(32)
}  // namespace lserve::cuda
