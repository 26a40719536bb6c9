// Prefill attention for a padded head size of 96.
#include "kernels/cuda/attend_prefill.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_PREFILL(96)
}  // namespace lserve::cuda
