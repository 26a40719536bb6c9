// Prefill attention for padded head sizes above 128.
#include "kernels/cuda/attend_prefill.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_PREFILL(256)
}  // namespace lserve::cuda
