// Decode attention for a padded head size of 32.
#include "kernels/cuda/attend_decode.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_DECODE(32)
}  // namespace lserve::cuda
