// Decode attention for a padded head size of 64.
#include "kernels/cuda/attend_decode.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_DECODE(64)
}  // namespace lserve::cuda
