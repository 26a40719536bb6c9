// Decode attention for a padded head size of 96.
#include "kernels/cuda/attend_decode.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_DECODE(96)
}  // namespace lserve::cuda
