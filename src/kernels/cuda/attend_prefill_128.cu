// Prefill attention for a padded head size of 128.
#include "kernels/cuda/attend_prefill.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_PREFILL(128)
}  // namespace lserve::cuda
