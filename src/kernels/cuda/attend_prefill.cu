// AttendPrefill: the choice of an instance.
#include "kernels/cuda/attend_prefill.cuh"
#include "kernels/cuda/operations.h"

namespace lserve::cuda {

#define LSERVE_DECLARE(kDim) \
  template <>                \
  void LaunchAttendPrefill<kDim>(const AttendPrefillParams& params, cudaStream_t stream)
LSERVE_DECLARE(32);
LSERVE_DECLARE(64);
LSERVE_DECLARE(96);
LSERVE_DECLARE(128);
LSERVE_DECLARE(256);
#undef LSERVE_DECLARE

void AttendPrefill(const AttendPrefillParams& params, cudaStream_t stream) {
  if (params.batch.max_chunks == 0) {
    return;
  }
  const int32_t padded = params.retrieval.layout.heads > 0
                             ? params.retrieval.layout.padded_head_dim
                             : params.streaming.layout.padded_head_dim;
  if (padded == 32) {
    LaunchAttendPrefill<32>(params, stream);
  } else if (padded == 64) {
    LaunchAttendPrefill<64>(params, stream);
  } else if (padded == 96) {
    LaunchAttendPrefill<96>(params, stream);
  } else if (padded == 128) {
    LaunchAttendPrefill<128>(params, stream);
  } else {
    LaunchAttendPrefill<256>(params, stream);
  }
}

int64_t AttendPrefillWorkspace(const AttendPrefillParams& /*params*/) { return 0; }

const char* AttendPrefillVariant(const AttendPrefillParams& /*params*/) { return "mma"; }

}  // namespace lserve::cuda
