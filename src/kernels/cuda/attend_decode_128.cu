// Decode attention for a padded head size of 128.
#include "kernels/cuda/attend_decode.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_DECODE(128)
}  // namespace lserve::cuda
