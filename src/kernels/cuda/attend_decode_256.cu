// Decode attention for padded head sizes above 128.
#include "kernels/cuda/attend_decode.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_DECODE(256)
}  // namespace lserve::cuda
