// Prefill attention by warpgroups for a padded head size of 128.
#include "kernels/cuda/attend_prefill_wgmma.cuh"

namespace lserve::cuda {
LSERVE_INSTANTIATE_ATTEND_PREFILL_WGMMA(128)
}  // namespace lserve::cuda
