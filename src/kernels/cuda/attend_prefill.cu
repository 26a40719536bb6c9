// AttendPrefill: the choice of an instance.
#include "kernels/cuda/attend_prefill.cuh"
#include "kernels/cuda/attend_prefill_wgmma.cuh"
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

#define LSERVE_DECLARE(kDim) \
  template <>                \
  void LaunchAttendPrefillWgmma<kDim>(const AttendPrefillParams& params, cudaStream_t stream)
LSERVE_DECLARE(64);
LSERVE_DECLARE(96);
LSERVE_DECLARE(128);
#undef LSERVE_DECLARE

namespace {

// The lane whose head size the instance is for.
const KvPageLayout& LayoutOf(const AttendPrefillParams& params) {
  return params.retrieval.layout.heads > 0 ? params.retrieval.layout : params.streaming.layout;
}

// By the parameters alone, not by what a step holds: a row's result does not depend on the batch.
bool TakesWgmma(const AttendPrefillParams& params) {
#if defined(LSERVE_HAS_SM90A)
  const KvPageLayout& layout = LayoutOf(params);
  const int32_t padded = layout.padded_head_dim;
  return HasWarpgroups() && !layout.boxed() && (padded == 64 || padded == 96 || padded == 128) &&
         layout.head_dim % 8 == 0;
#else
  static_cast<void>(params);
  return false;
#endif
}

}  // namespace

void AttendPrefill(const AttendPrefillParams& params, cudaStream_t stream) {
  if (params.batch.max_chunks == 0) {
    return;
  }
  const int32_t padded = LayoutOf(params).padded_head_dim;
  if (TakesWgmma(params)) {
    if (padded == 64) {
      LaunchAttendPrefillWgmma<64>(params, stream);
    } else if (padded == 96) {
      LaunchAttendPrefillWgmma<96>(params, stream);
    } else {
      LaunchAttendPrefillWgmma<128>(params, stream);
    }
  } else if (padded == 32) {
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

const char* AttendPrefillVariant(const AttendPrefillParams& params) {
  return TakesWgmma(params) ? "wgmma" : "mma";
}

}  // namespace lserve::cuda
